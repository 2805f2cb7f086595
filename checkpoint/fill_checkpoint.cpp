#include "digest.hpp"

#include <io/page_buffer.hpp>

#include <troupe/errors.hpp>
#include <troupe/node_parts.hpp>

#include <algorithm>
#include <set>
#include <utility>

namespace troupe {

namespace {

namespace fs = std::filesystem;
using Kind = FileSystem::Kind;

constexpr std::uint64_t kManifestLimit = std::uint64_t{1} << 30;

int writer_of(const FileRecord& record, const Segment& segment) {
  const auto run = std::ranges::find_if(record.writers, [&](const WrittenRun& one) { return one.begin <= segment.begin && segment.begin < one.end; });
  return run == record.writers.end() ? -1 : run->rank;
}

std::string text_of(const FileRecord& record, const Segment& segment) {
  return record.name + ": bytes " + std::to_string(segment.begin) + " to " + std::to_string(segment.begin + segment.length);
}

/// Reads segments of files.
class Verifier {
 public:
  bool verifies(File& file, const Segment& segment) {
    if (!memory_.data()) memory_ = detail::PageBuffer{static_cast<std::size_t>(segment_bytes)};
    const std::span bytes{memory_.data(), segment.length};
    file.read(bytes, segment.begin);
    return digest_of(bytes) == segment.digest;
  }

 private:
  detail::PageBuffer memory_;
};

class Filling {
 public:
  Filling(const fs::path& directory, std::string_view manifest, PeerDisk& from, const std::string& theirs, const PartNote& note, FileSystem& files)
      : directory_(directory), bytes_(manifest), from_(from), theirs_(theirs), note_(note), files_(files),
        manifest_(manifest_from_bytes(std::as_bytes(std::span{manifest}), theirs + "/" + manifest_name)) {}

  Filled run() {
    begin();
    for (const auto& record : manifest_.files) look_at(record);
    if (!missing_.empty() || !incomplete_.empty()) mark_as_part();
    for (const auto& name : incomplete_) make_file(*manifest_.find_file(name));
    fetch();
    if (is_part_) finish();
    return std::move(filled_);
  }

 private:
  void begin() {
    const auto here = directory_ / manifest_name;
    if (files_.kind(directory_) && (!files_.kind(here) || files_.read_all(here, kManifestLimit) != bytes_)) {
      if (!read_part_note(directory_, files_) || files_.kind(here)) files_.remove_tree(directory_);  // another one, or none
    }
    files_.make_directories(directory_);
    const auto own = read_part_note(directory_, files_);
    is_part_ = own.has_value();
    if (own && own->ranks.contains(own->node)) {
      const auto& ranks = own->ranks.at(own->node);
      own_ranks_.insert(ranks.begin(), ranks.end());
    }
  }

  /// A part of a damaged file's bytes was here before.
  bool was_here(const FileRecord& record, const Segment& segment) const {
    if (!is_part_) return true;
    return own_ranks_.contains(writer_of(record, segment));
  }

  void look_at(const FileRecord& record) {
    const auto path = directory_ / record.name;
    const auto kind = files_.kind(path);
    if (kind && *kind != Kind::File) files_.remove_tree(path);
    const auto file = kind == Kind::File ? files_.open(path, FileSystem::Access::Read) : nullptr;
    const bool is_whole = file && file->size() == record.size;
    if (!is_whole) incomplete_.insert(record.name);
    if (file && !is_whole) filled_.damaged.push_back(record.name + ": has " + std::to_string(file->size()) + " of " + std::to_string(record.size) + " bytes");
    for (const auto& segment : record.segments) {
      if (is_whole && verifier_.verifies(*file, segment)) continue;
      if (is_whole && was_here(record, segment)) filled_.damaged.push_back(text_of(record, segment));
      missing_.push_back({record.name, segment.begin, segment.length, segment.digest});
    }
  }

  void mark_as_part() {
    if (!std::exchange(is_part_, true)) files_.write_atomically(directory_ / part_note_name, to_text(note_));
  }

  std::unique_ptr<File> make_file(const FileRecord& record) {
    const auto path = directory_ / record.name;
    files_.make_directories(path.parent_path());
    auto file = files_.open(path, FileSystem::Access::Write);
    file->set_size(record.size);
    return file;
  }

  void fetch() {
    std::unique_ptr<File> file;
    std::string name;
    from_.read(theirs_, missing_, [&](const FilePiece& piece, std::string_view bytes) {
      if (!file || name != piece.file) {
        if (file) file->sync();
        file = make_file(*manifest_.find_file(piece.file));
        name = piece.file;
      }
      file->write(std::as_bytes(std::span{bytes}), piece.begin);
      filled_.bytes += bytes.size();
    });
    if (file) file->sync();
  }

  void sync_below(const fs::path& directory) {
    for (const auto& entry : files_.list(directory)) {
      if (entry.kind == Kind::Directory) sync_below(directory / entry.name);
    }
    files_.sync_directory(directory);
  }

  void finish() {
    files_.write_atomically(directory_ / manifest_name, bytes_);
    sync_below(directory_);
    files_.remove_file(directory_ / part_note_name);
    files_.sync_directory(directory_);
  }

  const fs::path directory_;
  const std::string_view bytes_;
  PeerDisk& from_;
  const std::string theirs_;
  const PartNote& note_;
  FileSystem& files_;
  const Manifest manifest_;
  bool is_part_ = false;
  std::set<int> own_ranks_;
  std::vector<FilePiece> missing_;
  std::set<std::string> incomplete_;
  Verifier verifier_;
  Filled filled_;
};

}  // namespace

std::vector<std::string> verify_part(const fs::path& directory, const PartNote& note, FileSystem& file_system) {
  std::vector<std::string> wrong;
  Verifier verifier;
  const auto found = note.ranks.find(note.node);
  const auto ranks = found == note.ranks.end() ? std::vector<int>{} : found->second;
  try {
    const auto bytes = file_system.read_all(directory / manifest_name, kManifestLimit);
    for (const auto& record : manifest_from_bytes(std::as_bytes(std::span{bytes}), (directory / manifest_name).string()).files) {
      const auto path = directory / record.name;
      if (file_system.kind(path) != Kind::File) continue;  // another node's
      const auto file = file_system.open(path, FileSystem::Access::Read);
      for (const auto& segment : record.segments) {
        if (!std::ranges::count(ranks, writer_of(record, segment))) continue;
        const bool is_there = segment.begin + segment.length <= file->size();
        if (!is_there || !verifier.verifies(*file, segment)) wrong.push_back(directory.string() + "/" + text_of(record, segment) + " are not what was written");
      }
    }
  } catch (const Failure& failure) {
    wrong.emplace_back(failure.what());
  }
  return wrong;
}

Filled fill_checkpoint(const fs::path& directory, std::string_view manifest, PeerDisk& from, const std::string& theirs, const PartNote& note,
                       FileSystem& file_system) {
  return Filling{directory, manifest, from, theirs, note, file_system}.run();
}

}  // namespace troupe
