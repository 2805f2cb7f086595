#include "snapshot_file.hpp"

#include "archive_records.hpp"
#include "digest.hpp"
#include "files.hpp"
#include "safetensors_layout.hpp"

#include <troupe/errors.hpp>

#include <fcntl.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstdio>
#include <cstring>

namespace troupe::detail {

namespace fs = std::filesystem;

namespace {

constexpr std::string_view kMark{"TROUPE\0T", 8};
constexpr std::uint32_t kMaxRanks = 1 << 16;
constexpr std::uint64_t kRecordLimit = std::uint64_t{1} << 32;
constexpr std::string_view kSeries = "series_";

[[noreturn]] void torn(const fs::path& path, const std::string& why) {
  throw Failure{Errc::FileCorrupt, "snapshot " + path.string() + " is not whole: " + why + "; use another snapshot or checkpoint"};
}

std::shared_ptr<Descriptor> open_file(const fs::path& path) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
  if (fd < 0 && (errno == ENOENT || errno == ENOTDIR)) torn(path, "it is missing");
  if (fd < 0 && errno == ELOOP) torn(path, "it is a symbolic link, which is not followed");
  if (fd < 0) files::fail("open", path, errno);
  return std::make_shared<Descriptor>(fd);
}

void read_at(int fd, std::span<std::byte> into, std::uint64_t offset, const fs::path& path) {
  while (!into.empty()) {
    const auto got = ::pread(fd, into.data(), std::min<std::size_t>(into.size(), 1U << 30), static_cast<off_t>(offset));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) files::fail("read", path, errno);
    if (got == 0) torn(path, "it ends at byte " + std::to_string(offset));
    into = into.subspan(static_cast<std::size_t>(got));
    offset += static_cast<std::uint64_t>(got);
  }
}

SnapshotHeader read_header(int fd, const fs::path& path) {
  SnapshotHeader header{};
  read_at(fd, std::as_writable_bytes(std::span{&header, 1}), 0, path);
  if (std::memcmp(header.mark, snapshot_mark, sizeof header.mark) != 0) torn(path, "it is no snapshot's, or none was taken yet");
  if (header.version != snapshot_version) torn(path, "it is of version " + std::to_string(header.version) + ", which this program does not read");
  return header;
}

}  // namespace

template <class Archive>
void serialize(Archive& archive, SnapshotPiece& piece) {
  archive(piece.tensor, piece.begin, piece.bytes, piece.offset);
}
template <class Archive>
void serialize(Archive& archive, SnapshotRecord& record) {
  archive(record.rank, record.world_size, record.attempt, record.number, record.reports, record.tensors_digest, record.tensors, record.pieces,
          record.state, record.own);
}

std::string to_bytes(const SnapshotRecord& record) { return frame(kMark, snapshot_version, record); }

SnapshotRecord snapshot_record_from_bytes(std::string_view bytes, std::string_view what) {
  auto record = unframe<SnapshotRecord>(bytes, kMark, snapshot_version, what);
  const auto refuse = [&](const std::string& why) { throw Failure{Errc::FileCorrupt, std::string(what) + ": " + why}; };
  for (const auto& tensor : record.tensors) {
    if (tensor_bytes(tensor.dtype, tensor.shape) != tensor.bytes) refuse("tensor '" + tensor.name + "' has a size that is not its shape's");
  }
  return record;
}

std::vector<StoredTensor> snapshot_tensors(const CheckpointPart& part) {
  std::vector<StoredTensor> tensors;
  for (const auto& file : part.files) {
    for (const auto& spec : file.tensors) {
      const auto bytes = tensor_bytes(spec.dtype, spec.shape);
      if (!bytes) throw Failure{Errc::InvalidArgument, "snapshot: tensor '" + spec.name + "' of '" + file.stem + "' has a size that no file can have"};
      tensors.push_back({file.stem, spec.name, spec.dtype, spec.shape, 0, 0, *bytes});
    }
  }
  return tensors;
}

std::uint64_t digest_of_tensors(const std::vector<StoredTensor>& tensors) {
  std::string bytes;
  Output out{bytes};
  out(tensors);
  return digest_of(std::string_view{bytes});
}

std::string snapshot_file_name(int rank) {
  char name[40];
  std::snprintf(name, sizeof name, "rank_%05d.snapshot", rank);
  return name;
}

fs::path series_path(const fs::path& directory, std::uint64_t series) {
  char name[40];
  std::snprintf(name, sizeof name, "series_%05llu", static_cast<unsigned long long>(series));
  return directory / name;
}

fs::path slot_path(const fs::path& directory, std::uint64_t series, int slot) {
  return series_path(directory, series) / ("slot_" + std::to_string(slot));
}

std::vector<std::uint64_t> snapshot_series(const fs::path& directory) {
  std::vector<std::uint64_t> found;
  std::error_code error;
  if (!fs::exists(directory, error)) return found;
  fs::directory_iterator entries{directory, error};
  files::check(error, "list", directory);
  for (const auto& entry : entries) {
    const auto name = entry.path().filename().string();
    if (!name.starts_with(kSeries)) continue;
    std::uint64_t number = 0;
    const auto* end = name.data() + name.size();
    const auto [rest, parsed] = std::from_chars(name.data() + kSeries.size(), end, number);
    if (parsed == std::errc{} && rest == end && series_path({}, number) == name) found.push_back(number);
  }
  std::ranges::sort(found);
  return found;
}

SnapshotSlot::SnapshotSlot(fs::path slot) : slot_(std::move(slot)) {
  info_.path = slot_;
  info_.world_size = 1;
  for (int rank = 0; rank < info_.world_size; ++rank) {
    auto record = open_share(rank);
    if (rank == 0) {
      if (!record.state) torn(shares_[0].path, "rank 0's state is missing");
      tensors_ = std::move(record.tensors);
      tensors_digest_ = record.tensors_digest;
      if (digest_of_tensors(tensors_) != tensors_digest_) torn(shares_[0].path, "its list of tensors is damaged");
      parts_.resize(tensors_.size());
      state_ = std::move(record.state);
      info_.steps = state_->step;
      info_.reports = record.reports;
    }
    if (record.tensors_digest != tensors_digest_) torn(shares_.back().path, "it is of other tensors than rank 0's");
    add_pieces(record);
    ranks_.emplace(rank, std::move(record.own));
  }
  check_tiles();
  for (int rank = 0; rank < info_.world_size; ++rank) check_unchanged(rank);
}

SnapshotRecord SnapshotSlot::open_share(int rank) {
  const auto path = slot_ / snapshot_file_name(rank);
  const auto file = open_file(path);
  const int fd = file->value;
  struct stat stat {};
  if (::fstat(fd, &stat) != 0) files::fail("stat", path, errno);
  if (!S_ISREG(stat.st_mode)) torn(path, "it is no regular file");
  const auto size = static_cast<std::uint64_t>(stat.st_size);
  const auto header = read_header(fd, path);
  const auto stamp = Stamp::of(header.stamp);
  if (stamp.state != ShareState::Good || stamp.number == 0) torn(path, "rank " + std::to_string(rank) + " had not finished it, or its state was not finite");
  if (header.world_size < 1 || header.world_size > kMaxRanks || header.rank != static_cast<std::uint32_t>(rank)) torn(path, "its header is damaged");
  if (rank == 0) {
    info_.number = stamp.number;
    info_.attempt = header.attempt;
    info_.world_size = static_cast<int>(header.world_size);
  }
  if (stamp.number != info_.number || header.attempt != info_.attempt || header.world_size != static_cast<std::uint32_t>(info_.world_size)) {
    torn(path, "it is number " + std::to_string(stamp.number) + " of attempt " + std::to_string(header.attempt) + ", rank 0's is number " +
                   std::to_string(info_.number) + " of attempt " + std::to_string(info_.attempt));
  }
  const bool fits = header.record_bytes <= kRecordLimit && header.data_begin == data_begin_after(header.record_bytes) && header.data_begin <= size;
  if (!fits) {
    torn(path, "its header is damaged");
  }
  std::string bytes(static_cast<std::size_t>(header.record_bytes), '\0');
  read_at(fd, std::as_writable_bytes(std::span{bytes}), snapshot_page, path);
  auto record = snapshot_record_from_bytes(bytes, "snapshot " + path.string());
  if (record.rank != rank || record.number != stamp.number || record.attempt != info_.attempt || record.world_size != info_.world_size) {
    torn(path, "its record is of another snapshot than its header");
  }
  shares_.push_back({path, file, size, header.data_begin});
  return record;
}

void SnapshotSlot::add_pieces(const SnapshotRecord& record) {
  const auto& share = shares_.back();
  const auto room = share.size - share.data_begin;
  for (const auto& piece : record.pieces) {
    const bool fits = piece.tensor < tensors_.size() && piece.offset <= room && piece.bytes <= room - piece.offset &&
                      piece.begin <= tensors_[piece.tensor].bytes && piece.bytes <= tensors_[piece.tensor].bytes - piece.begin;
    if (!fits) torn(share.path, "a piece of tensor number " + std::to_string(piece.tensor) + " lies outside");
    if (piece.bytes > 0) parts_[piece.tensor].push_back({piece.begin, piece.bytes, share.data_begin + piece.offset, record.rank});
  }
}

void SnapshotSlot::check_tiles() {
  for (std::size_t t = 0; t < tensors_.size(); ++t) {
    auto& parts = parts_[t];
    std::ranges::sort(parts, {}, &Part::begin);
    std::uint64_t at = 0;
    for (const auto& part : parts) {
      if (part.begin != at) torn(slot_, "bytes of tensor '" + tensors_[t].name + "' are missing or there twice, from byte " + std::to_string(at));
      at += part.bytes;
    }
    if (at != tensors_[t].bytes) torn(slot_, "bytes of tensor '" + tensors_[t].name + "' are missing from byte " + std::to_string(at));
  }
}

void SnapshotSlot::check_unchanged(int rank) const {
  const auto& share = shares_[static_cast<std::size_t>(rank)];
  const auto header = read_header(share.file->value, share.path);
  if (Stamp::of(header.stamp) != Stamp{info_.number, ShareState::Good}) torn(share.path, "it was written to while it was read");
}

std::vector<FileRecord> SnapshotSlot::files() const {
  std::vector<FileRecord> files;
  for (const auto& share : shares_) files.push_back({.name = share.path.filename().string(), .size = share.size, .digest = 0, .segments = {}, .writers = {}});
  return files;
}

void SnapshotSlot::read(std::size_t tensor, std::uint64_t begin, std::span<std::byte> into) const {
  const auto end = begin + into.size();
  for (const auto& part : parts_[tensor]) {
    const auto from = std::max(begin, part.begin), to = std::min(end, part.begin + part.bytes);
    if (from >= to) continue;
    const auto& share = shares_[static_cast<std::size_t>(part.rank)];
    read_at(share.file->value, into.subspan(from - begin, to - from), part.offset + (from - part.begin), share.path);
    check_unchanged(part.rank);
  }
}

}  // namespace troupe::detail
