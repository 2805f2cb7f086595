#include <troupe/node_parts.hpp>

#include "digest.hpp"
#include "layout.hpp"
#include "rank_file.hpp"

#include <troupe/errors.hpp>
#include <troupe/run_storage.hpp>

#include <algorithm>
#include <charconv>
#include <nlohmann/json.hpp>
#include <set>

namespace troupe {

namespace {

namespace fs = std::filesystem;
using Kind = FileSystem::Kind;

constexpr std::uint64_t kNoteLimit = 16 << 20;
constexpr std::uint64_t kRankFileLimit = std::uint64_t{1} << 32;
constexpr std::uint64_t kManifestLimit = std::uint64_t{1} << 30;

std::string list_of(const std::vector<int>& ranks) {
  std::string text = ranks.size() == 1 ? "rank " : "ranks ";
  for (std::size_t i = 0; i < ranks.size(); ++i) text += (i > 0 ? ", " : "") + std::to_string(ranks[i]);
  return text;
}

/// Copies one directory of a peer.
class Gathering {
 public:
  Gathering(PeerDisk& from, std::string directory, fs::path into, std::string who, FileSystem& files)
      : from_(from), directory_(std::move(directory)), into_(std::move(into)), who_(std::move(who)), files_(files) {}

  void run() {
    files_.make_directories(into_);
    std::vector<PeerDisk::Entry> records, others;
    for (auto& entry : from_.list(directory_)) {
      if (!detail::is_plain_name(entry.name)) throw Failure{Errc::InvalidArgument, who_ + " wrote a file whose name is no good: " + entry.name};
      if (entry.name == manifest_name || entry.name == manifest_json_name || entry.name == nodes_name || entry.name == part_note_name) continue;
      (detail::rank_in_name(entry.name) ? records : others).push_back(std::move(entry));
    }
    for (const auto& record : records) {
      const bool is_known = files_.kind(into_ / record.name).has_value();
      copy(record);
      const auto bytes = files_.read_all(into_ / record.name, kRankFileLimit);
      for (const auto& written : detail::rank_file_from_bytes(bytes, who_ + ": " + record.name).written) {
        shared_.insert(written.name);
        if (!is_known) copy_ranges(written);
      }
    }
    for (const auto& entry : others) {
      if (!shared_.contains(entry.name)) copy(entry);
    }
  }

 private:
  std::unique_ptr<File> open(const std::string& name, std::uint64_t size) {
    const auto path = into_ / name;
    files_.make_directories(path.parent_path());
    auto file = files_.open(path, FileSystem::Access::Write);
    file->set_size(size);
    return file;
  }

  void copy(const PeerDisk::Entry& entry) {
    const auto path = into_ / entry.name;
    const bool is_here = files_.kind(path).has_value();
    const auto differs = [&] {
      throw Failure{Errc::AlreadyExists, entry.name + " of " + who_ + " is not the one of the same name that another node's ranks wrote; give each rank's files its own name"};
    };
    if (is_here && files_.open(path, FileSystem::Access::Read)->size() != entry.size) differs();
    const auto file = open(entry.name, entry.size);
    std::string there;
    from_.read(directory_, pieces_of(entry.name, entry.size), [&](const FilePiece& piece, std::string_view bytes) {
      if (!is_here) return file->write(std::as_bytes(std::span{bytes}), piece.begin);
      there.resize(bytes.size());
      file->read(std::as_writable_bytes(std::span{there}), piece.begin);
      if (there != bytes) differs();
    });
    file->sync();
  }

  void copy_ranges(const detail::RankFile::Written& written) {
    const auto file = open(written.name, written.size);
    std::vector<FilePiece> pieces;
    for (const auto& segment : written.segments) pieces.push_back({written.name, segment.begin, segment.length, segment.digest});
    from_.read(directory_, pieces, [&](const FilePiece& piece, std::string_view bytes) { file->write(std::as_bytes(std::span{bytes}), piece.begin); });
    file->sync();
  }

  PeerDisk& from_;
  const std::string directory_;
  const fs::path into_;
  const std::string who_;
  FileSystem& files_;
  std::set<std::string> shared_;
};

/// Moves files below `from` to the same place below `to`, and syncs them.
void move_files(FileSystem& files, const fs::path& from, const fs::path& to, std::vector<fs::path>& directories) {
  files.make_directories(to);
  directories.push_back(to);
  for (const auto& entry : files.list(from)) {
    if (entry.kind == Kind::Directory) move_files(files, from / entry.name, to / entry.name, directories);
    else if (entry.kind == Kind::File) {
      files.open(from / entry.name, FileSystem::Access::Read)->sync();
      files.rename(from / entry.name, to / entry.name);
    }
  }
}

}  // namespace

std::vector<FilePiece> pieces_of(const std::string& file, std::uint64_t size) {
  std::vector<FilePiece> pieces;
  for (std::uint64_t at = 0; at < size; at += segment_bytes) {
    pieces.push_back({file, at, static_cast<std::uint32_t>(std::min(segment_bytes, size - at)), std::nullopt});
  }
  return pieces;
}

std::optional<std::uint64_t> index_of_checkpoint(std::string_view name) noexcept {
  constexpr std::string_view prefix = "checkpoint_";
  if (!name.starts_with(prefix)) return std::nullopt;
  const auto digits = name.substr(prefix.size());
  std::uint64_t index = 0;
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), index);
  if (digits.empty() || error != std::errc{} || end != digits.data() + digits.size()) return std::nullopt;
  return index;
}

bool is_piece(const FilePiece& piece, std::string_view bytes) noexcept {
  return bytes.size() == piece.length && (!piece.digest || digest_of(bytes) == *piece.digest);
}

bool is_checkpoint_file(std::string_view path) noexcept {
  const auto slash = path.find('/');
  return slash != std::string_view::npos && index_of_checkpoint(path.substr(0, slash)) && detail::is_plain_name(path);
}

void check_piece(const FilePiece& piece, std::string_view bytes, const std::string& who) {
  const auto where = [&] { return who + ": " + piece.file + ": bytes " + std::to_string(piece.begin) + " to " + std::to_string(piece.begin + piece.length); };
  if (bytes.size() != piece.length) throw Failure{Errc::FileCorrupt, where() + " are not all there"};
  if (!is_piece(piece, bytes)) throw Failure{Errc::FileCorrupt, where() + " are not what was written: their digest is another"};
}

std::string to_text(const PartNote& note) {
  nlohmann::ordered_json json;
  if (!note.node.empty()) json["node"] = note.node;
  json["whole"] = note.whole;
  json["history"] = note.history;
  auto& nodes = json["nodes"] = nlohmann::ordered_json::object();
  for (const auto& [node, ranks] : note.ranks) nodes[node] = ranks;
  return json.dump(1, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n";
}

PartNote part_note_from_text(const std::string& text, const std::string& what) {
  try {
    const auto json = nlohmann::json::parse(text);
    PartNote note{json.value("node", ""), json.at("whole").get<std::string>(), json.at("history").get<std::string>(), {}};
    for (const auto& [node, ranks] : json.at("nodes").items()) note.ranks[node] = ranks.get<std::vector<int>>();
    return note;
  } catch (const nlohmann::json::exception& error) {
    throw Failure{Errc::FileCorrupt, what + ": " + error.what()};
  }
}

std::optional<PartNote> read_part_note(const fs::path& directory, FileSystem& file_system) {
  const auto path = directory / part_note_name;
  if (!file_system.kind(path)) return std::nullopt;
  return part_note_from_text(file_system.read_all(path, kNoteLimit), path.string());
}

std::string describe(const PartNote& note) {
  if (note.node.empty()) return "what was found of it on nodes";
  std::string text = "the part of node " + note.node, others;
  for (const auto& [node, ranks] : note.ranks) {
    if (node == note.node) text += " (" + list_of(ranks) + ")";
    else others += (others.empty() ? "" : ", ") + node + " (" + list_of(ranks) + ")";
  }
  return text + "; the whole is at " + note.whole + (others.empty() ? "" : ", other parts on node " + others);
}

void gather_part(PeerDisk& from, const std::string& directory, const fs::path& into, const std::string& who, FileSystem& file_system) {
  Gathering{from, directory, into, who, file_system}.run();
}

void keep_part(const fs::path& run, std::uint64_t index, const std::vector<std::string>& directories, const std::map<std::string, std::string>& files, const PartNote& note,
               FileSystem& file_system) {
  const auto staging = run / ".staging", part = staging / ("part_" + std::to_string(index)), target = run / checkpoint_name(index);
  if (file_system.kind(target / manifest_name) && file_system.read_all(target / manifest_name, kManifestLimit) == files.at(manifest_name)) return;  // by another node of this disk
  file_system.remove_tree(target);  // of a history that is over
  std::vector<fs::path> made;
  file_system.remove_tree(part);  // of a try that broke off
  file_system.make_directories(part);
  made.push_back(part);
  for (const auto& directory : directories) {
    const auto relative = fs::path{directory}.lexically_normal().lexically_relative(staging);
    const bool is_below = !relative.empty() && relative != "." && *relative.begin() != "..";
    if (!is_below || file_system.kind(directory) != Kind::Directory) continue;
    move_files(file_system, directory, part, made);
    file_system.remove_tree(directory);
  }
  for (const auto& [name, bytes] : files) file_system.write_atomically(part / name, bytes);
  file_system.write_atomically(part / part_note_name, to_text(note));
  for (const auto& directory : made) file_system.sync_directory(directory);
  file_system.rename(part, target);
  file_system.sync_directory(run);
}

}  // namespace troupe
