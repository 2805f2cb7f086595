#include "commit.hpp"

#include "assemble.hpp"
#include "digest.hpp"
#include "layout.hpp"
#include "rank_file.hpp"

#include <io/page_buffer.hpp>

#include <troupe/checkpoint_files.hpp>
#include <troupe/errors.hpp>

#include <algorithm>
#include <set>

namespace troupe::detail {

namespace {

namespace fs = std::filesystem;
using Kind = FileSystem::Kind;

constexpr std::string_view checkpoint_prefix = "checkpoint_";

bool is_below(const fs::path& path, const fs::path& directory) {
  const auto relative = path.lexically_normal().lexically_relative(directory);
  return !relative.empty() && relative != "." && *relative.begin() != "..";
}

/// Without "." and "..", and without a slash at its end.
fs::path plain(const fs::path& directory) {
  auto path = directory.lexically_normal();
  return path.has_filename() ? path : path.parent_path();
}

class Commit {
 public:
  Commit(FileSystem& file_system, const fs::path& run, const CompleteCheckpoint& checkpoint)
      : file_system_(file_system),
        checkpoint_(checkpoint),
        staging_(run / ".staging"),
        run_(run),
        target_(run / checkpoint_name(checkpoint.index)),
        what_("checkpoint of report " + std::to_string(checkpoint.index)) {}

  CheckpointRecord run() {
    if (file_system_.kind(target_)) throw Failure{Errc::AlreadyExists, target_.string() + " is there already"};
    find_files();
    Manifest manifest;
    manifest.index = checkpoint_.index;
    manifest.metrics = checkpoint_.metrics;
    manifest.num_writers = static_cast<int>(checkpoint_.directories.size());
    assemble(file_system_, files_, what_, manifest);
    gather();
    open_plain(manifest);
    write_manifest(manifest);
    sync();
    publish();
    for (const auto& directory : sources_) {
      if (directory != whole_ && is_below(directory, staging_)) forget(directory);
    }
    return {Checkpoint{target_}, checkpoint_.metrics, checkpoint_.index};
  }

 private:
  void find_files() {
    std::map<fs::path, int> ranks;  // each directory once, by its lowest rank
    for (const auto& [rank, directory] : checkpoint_.directories) ranks.try_emplace(plain(directory), rank);
    for (const auto& [directory, rank] : ranks) {
      sources_.push_back(directory);
      if (file_system_.kind(directory) != Kind::Directory) {
        throw Failure{Errc::FileNotFound, "the reported checkpoint " + directory.string() + " is no directory"};
      }
      const auto before = files_.size();
      find_below(directory, "", rank);
      if (files_.size() == before) throw Failure{Errc::FileNotFound, "the reported checkpoint " + directory.string() + " is empty"};
    }
  }

  void find_below(const fs::path& root, const std::string& folder, int rank) {
    for (const auto& entry : file_system_.list(root / folder)) {
      const auto name = folder.empty() ? entry.name : folder + "/" + entry.name;
      if (!is_plain_name(name))
        throw Failure{Errc::InvalidArgument,
                      what_ + ": rank " + std::to_string(rank) + " wrote a file whose name is no good: " + (root / name).string()};
      if (entry.kind == Kind::Directory) {
        find_below(root, name, rank);
      } else if (entry.kind == Kind::Other) {
        throw Failure{Errc::InvalidArgument,
                      what_ + ": " + (root / name).string() + " is a symbolic link or a device; put the file itself there"};
      } else if (name != manifest_name && name != manifest_json_name) {  // else an older checkpoint's, copied along
        const auto [found, fresh] = files_.emplace(name, SourceFile{root / name, rank});
        if (fresh) continue;
        throw Failure{Errc::AlreadyExists, what_ + ": ranks " + std::to_string(found->second.rank) + " and " + std::to_string(rank) +
                                               " both wrote " + name + "; give each rank's files its own name"};
      }
    }
  }

  /// One directory below .staging with everything in it: the only source itself, or a new one that files are moved or copied into.
  void gather() {
    whole_ = sources_.front();
    if (sources_.size() == 1 && is_below(whole_, staging_)) return;
    whole_ = staging_ / ("merge_" + std::to_string(checkpoint_.index));
    file_system_.remove_tree(whole_);
    file_system_.make_directories(whole_);
    for (auto& [name, source] : files_) {
      const auto to = whole_ / name;
      file_system_.make_directories(to.parent_path());
      if (is_below(source.path, staging_)) file_system_.rename(source.path, to);
      else copy(source.path, to);
    }
  }

  void copy(const fs::path& from, const fs::path& to) {
    const auto in = file_system_.open(from, FileSystem::Access::Read), out = file_system_.open(to, FileSystem::Access::Write);
    const auto size = in->size();
    out->set_size(size);
    const PageBuffer buffer{static_cast<std::size_t>(segment_bytes)};
    for (std::uint64_t at = 0; at < size; at += segment_bytes) {
      const std::span bytes{buffer.data(), static_cast<std::size_t>(std::min(segment_bytes, size - at))};
      in->read(bytes, at);
      out->write(bytes, at);
    }
    out->sync();
  }

  /// Files that `write_part` wrote are durable; the users' are not, nor is anyone asked to.
  void open_plain(const Manifest& manifest) {
    std::set<std::uint32_t> by_ranks;
    for (const auto& tensor : manifest.tensors) by_ranks.insert(tensor.file);
    for (std::uint32_t i = 0; i < manifest.files.size(); ++i) {
      const auto& name = manifest.files[i].name;
      if (by_ranks.contains(i) || rank_in_name(name)) continue;
      unsynced_.push_back(file_system_.open(whole_ / name, FileSystem::Access::Read));
      if (unsynced_.size() < 64) continue;  // not one descriptor for each of very many
      file_system_.sync_all(unsynced_, {});
      unsynced_.clear();
    }
  }

  void write_manifest(Manifest& manifest) {
    const auto write = [&](const char* name, std::string_view bytes) {
      const auto path = whole_ / name;
      if (file_system_.kind(path)) file_system_.remove_file(path);
      auto& file = unsynced_.emplace_back(file_system_.open(path, FileSystem::Access::Write));
      file->set_size(bytes.size());
      file->write(std::as_bytes(std::span{bytes}), 0);
    };
    const auto text = to_text(manifest);
    FileRecord json{manifest_json_name, text.size(), 0, segments_of(text), {{-1, 0, text.size()}}};
    json.digest = digest_of(json.segments);
    const auto place = std::ranges::lower_bound(manifest.files, json.name, {}, &FileRecord::name);
    const auto moved = static_cast<std::uint32_t>(place - manifest.files.begin());
    manifest.files.insert(place, std::move(json));
    for (auto& tensor : manifest.tensors) tensor.file += tensor.file >= moved ? 1 : 0;
    write(manifest_json_name, text);
    write(manifest_name, to_bytes(manifest));
  }

  void find_directories(const fs::path& directory, std::vector<fs::path>& found) {
    for (const auto& entry : file_system_.list(directory)) {
      if (entry.kind == Kind::Directory) find_directories(directory / entry.name, found);
    }
    found.push_back(directory);
  }

  /// What is not durable yet, all at once: users' files, manifests, and the entries of every directory, which ranks do not sync.
  void sync() {
    std::vector<fs::path> directories;
    find_directories(whole_, directories);
    file_system_.sync_all(unsynced_, directories);
    unsynced_.clear();
  }

  void publish() {
    file_system_.rename(whole_, target_);
    try {
      file_system_.sync_directory(run_);
    } catch (const Failure&) {
      // It may not survive a power cut, so it must not be taken for committed.
      try {
        file_system_.rename(target_, whole_);
      } catch (const Failure&) {
        // It stays, whole; the caller hears of the first failure.
      }
      throw;
    }
  }

  void forget(const fs::path& directory) {
    try {
      file_system_.remove_tree(directory);
    } catch (const Failure&) {
      // Empty directories in .staging hurt nobody and are swept at the next start.
    }
  }

  FileSystem& file_system_;
  const CompleteCheckpoint& checkpoint_;
  fs::path staging_, run_, target_, whole_;
  std::string what_;
  std::vector<fs::path> sources_;
  SourceFiles files_;
  std::vector<std::unique_ptr<File>> unsynced_;
};

}  // namespace

CheckpointRecord commit_checkpoint(FileSystem& file_system, const fs::path& run, const CompleteCheckpoint& checkpoint) {
  return Commit{file_system, run, checkpoint}.run();
}

void discard_checkpoint(FileSystem& file_system, const fs::path& run, const CompleteCheckpoint& checkpoint) {
  std::set<fs::path> directories;
  for (const auto& [rank, directory] : checkpoint.directories) directories.insert(plain(directory));
  for (const auto& directory : directories) {
    if (is_below(directory, run / ".staging")) file_system.remove_tree(directory);
  }
}

void remove_checkpoint(FileSystem& file_system, const fs::path& run, std::uint64_t index) {
  // Renamed first, durably: a crash leaves no half of a checkpoint under a checkpoint's name.
  const auto doomed = run / ".staging" / ("removed_" + std::to_string(index));
  file_system.remove_tree(doomed);
  file_system.rename(run / checkpoint_name(index), doomed);
  try {
    file_system.sync_directory(run);
    file_system.remove_tree(doomed);
  } catch (const Failure&) {
    // It is gone under its name. What is left of it in .staging is swept at the next start.
  }
}

void sweep_staging(FileSystem& file_system, const fs::path& run) {
  const auto staging = run / ".staging";
  file_system.remove_tree(staging);
  file_system.make_directories(staging);
}

void read_checkpoints(FileSystem& file_system, const fs::path& run, RunContents& contents) {
  for (const auto& entry : file_system.list(run)) {
    if (entry.kind != Kind::Directory || !entry.name.starts_with(checkpoint_prefix)) continue;
    try {
      const CheckpointReader reader{run / entry.name, file_system};
      if (!reader.has_manifest())
        throw Failure{Errc::FileCorrupt, "checkpoint " + (run / entry.name).string() + " is damaged: it has no " + manifest_name};
      contents.checkpoints.push_back({Checkpoint{run / entry.name}, reader.manifest().metrics, reader.manifest().index});
    } catch (const Failure& failure) {
      contents.warnings.push_back(std::string(failure.what()) + "; it is left aside");
    }
  }
  std::ranges::sort(contents.checkpoints, {}, &CheckpointRecord::index);
}

}  // namespace troupe::detail
