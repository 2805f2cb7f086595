#include "layout.hpp"
#include "plain_directory.hpp"
#include "rank_file.hpp"
#include "segment_reader.hpp"
#include "snapshot_file.hpp"

#include <troupe/checkpoint_directory.hpp>
#include <troupe/checkpoint_files.hpp>
#include <troupe/errors.hpp>
#include <troupe/node_parts.hpp>

#include <algorithm>
#include <map>
#include <unordered_map>

namespace troupe {

namespace fs = std::filesystem;

namespace {

constexpr std::uint64_t kManifestLimit = std::uint64_t{1} << 30;
constexpr std::uint64_t kRankFileLimit = std::uint64_t{1} << 32;

using TensorMap = std::unordered_map<std::string_view, const StoredTensor*>;

}  // namespace

struct CheckpointReader::Impl {
  fs::path directory;
  FileSystem& file_system;
  bool has_manifest = false;
  Manifest manifest;
  std::optional<TrainState> state;
  std::map<int, RankState> ranks;
  std::map<std::string_view, TensorMap> tensors;  ///< by stem; points into the manifest
  std::optional<detail::SnapshotSlot> snapshot;

  Impl(const fs::path& path, FileSystem& files) : directory(CheckpointDirectory::whereabouts(path, files)), file_system(files) {
    if (file_system.kind(directory / ".") != FileSystem::Kind::Directory) {  // the directory itself may be reached by a link
      throw Failure{Errc::FileNotFound, "checkpoint " + directory.string() + ": there is no such directory"};
    }
    if (const auto note = read_part_note(directory, file_system)) {
      throw Failure{Errc::NotFound, "checkpoint " + directory.string() + " is not whole: it is " + troupe::describe(*note)};
    }
    has_manifest = file_system.kind(directory / manifest_name).has_value();
    try {
      if (has_manifest) open();
      else if (is_snapshot(directory)) open_snapshot();
      else manifest = detail::plain_directory(directory, file_system);
    } catch (const Failure& failure) {
      const std::string_view text{failure.what()};
      const bool told = text.starts_with("checkpoint ") || text.starts_with("snapshot ");
      if (!told && (failure.code() == Errc::FileCorrupt || failure.code() == Errc::FileNotFound)) damaged(failure.what());
      throw;
    }
    for (const auto& tensor : manifest.tensors) tensors[tensor.stem].emplace(tensor.name, &tensor);
  }

  [[noreturn]] void damaged(const std::string& why) const {
    throw Failure{Errc::FileCorrupt, "checkpoint " + directory.string() + " is damaged: " + why};
  }

  void open() {
    const auto bytes = file_system.read_all(directory / manifest_name, kManifestLimit);
    manifest = manifest_from_bytes(std::as_bytes(std::span{bytes}), manifest_name);
    for (const auto& file : manifest.files) {
      const auto found = open_file(file)->size();
      if (found != file.size) damaged(file.name + " has " + std::to_string(found) + " of " + std::to_string(file.size) + " bytes");
    }
    for (const auto& file : manifest.files) {
      if (const auto rank = detail::rank_in_name(file.name)) read_rank(file, *rank);
    }
  }

  void open_snapshot() {
    snapshot.emplace(directory);
    state = snapshot->state();
    ranks = std::move(snapshot->ranks());
    const auto& info = snapshot->info();
    manifest.attempt = info.attempt;
    manifest.num_writers = manifest.world_size = info.world_size;
    manifest.step = info.steps;
    manifest.epoch = state->epoch;
    manifest.strategy = state->strategy;
    manifest.files = snapshot->files();
    manifest.tensors = snapshot->tensors();
  }

  /// Refuses whatever is no regular file in real directories below this one.
  std::unique_ptr<File> open_file(const FileRecord& file) const {
    fs::path at = directory;
    const fs::path name{file.name};
    for (auto part = name.begin(); part != name.end(); ++part) {
      at /= *part;
      const auto wanted = std::next(part) == name.end() ? FileSystem::Kind::File : FileSystem::Kind::Directory;
      const auto found = file_system.kind(at);
      if (!found) damaged(file.name + " is missing");
      if (*found != wanted)
        damaged(at.lexically_relative(directory).string() +
                (wanted == FileSystem::Kind::File ? " is no regular file" : " is no directory") + " (links are not followed)");
    }
    return file_system.open(at, FileSystem::Access::Read);
  }

  void read_rank(const FileRecord& record, int rank) {
    std::string bytes(record.size > kRankFileLimit ? 0 : record.size, '\0');
    if (bytes.size() != record.size)
      damaged(record.name + " has " + std::to_string(record.size) + " bytes, more than a rank file can have");
    const detail::FileRange all{0, std::as_writable_bytes(std::span{bytes})};
    detail::read_segments(file_system, directory / record.name, record, {&all, 1},
                          [this](const auto& f, const auto& s) { return describe(f, s); });
    auto file = detail::rank_file_from_bytes(bytes, record.name);
    if (file.rank != rank || file.num_writers != manifest.num_writers || file.attempt != manifest.attempt) {
      damaged(record.name + " is of rank " + std::to_string(file.rank) + " of " + std::to_string(file.num_writers) + ", attempt " +
              std::to_string(file.attempt) + ", which is not what the manifest says");
    }
    if (file.state) state = std::move(file.state);
    ranks.emplace(rank, std::move(file.own));
  }

  /// "model.safetensors: bytes 4096 to 8192 (tensor 'w' of 'model'; written by rank 1) …"
  std::string describe(const FileRecord& file, const Segment& segment) const {
    std::string where = file.name + ": bytes " + std::to_string(segment.begin) + " to " + std::to_string(segment.begin + segment.length);
    std::string names;
    int more = 0;
    for (const auto& tensor : manifest.tensors) {
      const bool here = manifest.files[tensor.file].name == file.name && tensor.begin < segment.begin + segment.length &&
                        tensor.begin + tensor.bytes > segment.begin;
      if (!here) continue;
      if (names.size() < 200) names += (names.empty() ? "tensor '" : ", '") + tensor.name + "'";
      else ++more;
    }
    if (more > 0) names += " and " + std::to_string(more) + " more";
    for (const auto& run : file.writers) {
      if (run.begin <= segment.begin && segment.begin < run.end && run.rank >= 0)
        names += (names.empty() ? "" : "; ") + ("written by rank " + std::to_string(run.rank));
    }
    if (!names.empty()) where += " (" + names + ")";
    return "checkpoint " + directory.string() + " is damaged: " + where +
           " are not what was written: their digest differs from the manifest's; use another checkpoint";
  }

  const TensorMap& of_stem(std::string_view stem) const {
    const auto found = tensors.find(stem);
    if (found == tensors.end()) throw Failure{Errc::NotFound, "checkpoint " + directory.string() + " has no '" + std::string(stem) + "'"};
    return found->second;
  }

  const StoredTensor& find(std::string_view stem, const ReadRange& range) const {
    const auto& of = of_stem(stem);
    const auto found = of.find(range.tensor);
    const auto where = "checkpoint " + directory.string() + ", '" + std::string(stem) + "': ";
    if (found == of.end()) throw Failure{Errc::NotFound, where + "there is no tensor '" + range.tensor + "'"};
    const auto& tensor = *found->second;
    if (range.begin > tensor.bytes || range.into.size() > tensor.bytes - range.begin) {
      throw Failure{Errc::InvalidArgument, where + "tensor '" + range.tensor + "' has " + std::to_string(tensor.bytes) + " bytes; " +
                                               std::to_string(range.begin) + " to " + std::to_string(range.begin + range.into.size()) +
                                               " were asked for"};
    }
    return tensor;
  }

  void read(std::string_view stem, std::span<const ReadRange> ranges) const {
    std::map<std::uint32_t, std::vector<detail::FileRange>> wanted;  // by file
    for (const auto& range : ranges) {
      const auto& tensor = find(stem, range);
      if (snapshot) snapshot->read(static_cast<std::size_t>(&tensor - manifest.tensors.data()), range.begin, range.into);
      else if (!range.into.empty()) wanted[tensor.file].push_back({tensor.begin + range.begin, range.into});
    }
    for (auto& [place, parts] : wanted) {
      std::ranges::sort(parts, {}, &detail::FileRange::begin);
      const auto& file = manifest.files[place];
      if (has_manifest) {
        (void)open_file(file);  // not replaced by a link since
        detail::read_segments(file_system, directory / file.name, file, parts,
                              [this](const auto& f, const auto& s) { return describe(f, s); });
      } else {
        const auto opened = file_system.open(directory / file.name, FileSystem::Access::Read);
        for (const auto& part : parts) opened->read(part.into, part.begin);
      }
    }
  }

  void verify(const FileRecord& file) const {
    (void)open_file(file);
    detail::verify_segments(file_system, directory / file.name, file, [this](const auto& f, const auto& s) { return describe(f, s); });
  }
};

CheckpointReader::CheckpointReader(fs::path directory, FileSystem& file_system)
    : impl_(std::make_unique<Impl>(std::move(directory), file_system)) {}
CheckpointReader::~CheckpointReader() = default;
CheckpointReader::CheckpointReader(CheckpointReader&&) noexcept = default;
CheckpointReader& CheckpointReader::operator=(CheckpointReader&&) noexcept = default;

bool CheckpointReader::has_manifest() const noexcept { return impl_->has_manifest; }
const fs::path& CheckpointReader::directory() const noexcept { return impl_->directory; }
const Manifest& CheckpointReader::manifest() const noexcept { return impl_->manifest; }
const std::optional<TrainState>& CheckpointReader::state() const noexcept { return impl_->state; }

const RankState& CheckpointReader::rank_state(int rank) const {
  const auto found = impl_->ranks.find(rank);
  if (found != impl_->ranks.end()) return found->second;
  throw Failure{Errc::NotFound, "checkpoint " + directory().string() + " has no state of rank " + std::to_string(rank) + "; " +
                                    std::to_string(impl_->ranks.size()) + " ranks wrote one"};
}

std::vector<std::string> CheckpointReader::stems() const {
  std::vector<std::string> stems;
  for (const auto& [stem, tensors] : impl_->tensors) stems.emplace_back(stem);
  return stems;
}

std::vector<TensorSpec> CheckpointReader::tensors(std::string_view stem) const {
  std::vector<TensorSpec> specs;
  for (const auto& tensor : impl_->manifest.tensors) {
    if (tensor.stem == stem) specs.push_back({tensor.name, tensor.dtype, tensor.shape});
  }
  return specs;
}

void CheckpointReader::read(std::string_view stem, std::span<const ReadRange> ranges) const { impl_->read(stem, ranges); }

void CheckpointReader::verify(std::string_view file) const {
  const auto* record = impl_->manifest.find_file(file);
  if (!record) throw Failure{Errc::NotFound, "checkpoint " + directory().string() + " has no file " + std::string(file)};
  if (impl_->has_manifest) impl_->verify(*record);
}

void CheckpointReader::verify() const {
  if (!has_manifest()) return;
  for (const auto& file : impl_->manifest.files) verify(file.name);
}

std::vector<std::string> verify_checkpoint(const fs::path& directory, FileSystem& file_system) {
  std::vector<std::string> wrong;
  try {
    const CheckpointReader reader{directory, file_system};
    if (!reader.has_manifest())
      wrong.push_back("checkpoint " + directory.string() + " has no manifest: nothing but its headers can be verified");
    for (const auto& file : reader.manifest().files) {
      try {
        reader.verify(file.name);
      } catch (const Failure& failure) {
        wrong.emplace_back(failure.what());
      }
    }
  } catch (const Failure& failure) {
    wrong.emplace_back(failure.what());
  }
  return wrong;
}

}  // namespace troupe
