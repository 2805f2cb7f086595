#include "assemble.hpp"

#include "digest.hpp"
#include "rank_file.hpp"

#include <io/page_buffer.hpp>

#include <troupe/errors.hpp>

#include <algorithm>
#include <tuple>

namespace troupe::detail {

namespace {

constexpr std::uint64_t kRankFileLimit = std::uint64_t{1} << 32;

struct OwnedSegment {
  Segment segment;
  int rank = 0;
};

/// What all ranks together say of one shared file.
struct SharedFile {
  std::uint64_t size = 0;
  int first_rank = 0;
  std::vector<OwnedSegment> segments;
};

std::string bytes_text(std::uint64_t begin, std::uint64_t end) { return "bytes " + std::to_string(begin) + " to " + std::to_string(end); }

/// The segments of a file that nobody recorded: reads all of it.
std::vector<Segment> digest_file(File& file) {
  std::vector<Segment> segments;
  const auto size = file.size();
  if (size == 0) return segments;
  const PageBuffer buffer{static_cast<std::size_t>(std::min(size, segment_bytes))};
  for (std::uint64_t at = 0; at < size; at += segment_bytes) {
    const std::span bytes{buffer.data(), static_cast<std::size_t>(std::min(segment_bytes, size - at))};
    file.read(bytes, at);
    segments.push_back({at, static_cast<std::uint32_t>(bytes.size()), digest_of(bytes)});
  }
  return segments;
}

class Assembly {
 public:
  Assembly(FileSystem& file_system, const SourceFiles& files, const std::string& what, Manifest& manifest)
      : file_system_(file_system), files_(files), what_(what), manifest_(manifest) {}

  void run() {
    read_ranks();
    if (!ranks_.empty()) check_ranks();
    for (const auto& rank : ranks_) gather(rank);
    for (auto& [name, file] : shared_) check_shared(name, file);
    for (const auto& [name, source] : files_) {
      const auto found = shared_.find(name);
      if (found == shared_.end()) add_plain(name, source);
      else add_shared(name, found->second);
    }
    if (!ranks_.empty()) take_state(ranks_.front());
  }

 private:
  [[noreturn]] void refuse(const std::string& why) const { throw Failure{Errc::InvalidArgument, what_ + ": " + why}; }

  void read_ranks() {
    for (const auto& [name, source] : files_) {
      const auto rank = rank_in_name(name);
      if (!rank) continue;
      ranks_.push_back(rank_file_from_bytes(file_system_.read_all(source.path, kRankFileLimit), source.path.string()));
      if (ranks_.back().rank != *rank) refuse(source.path.string() + " is of rank " + std::to_string(ranks_.back().rank));
    }
    std::ranges::sort(ranks_, {}, &RankFile::rank);
  }

  void check_ranks() const {
    const auto& first = ranks_.front();
    std::string missing;
    for (int rank = 0; rank < first.num_writers; ++rank) {
      if (std::ranges::find(ranks_, rank, &RankFile::rank) == ranks_.end() && missing.size() < 100)
        missing += (missing.empty() ? "" : ", ") + std::to_string(rank);
    }
    for (const auto& rank : ranks_) {
      const auto differs = [&](const char* thing, const auto& mine, const auto& theirs) {
        if (mine == theirs) return;
        refuse(std::string("ranks ") + std::to_string(first.rank) + " and " + std::to_string(rank.rank) + " wrote " + thing + " (" +
               std::to_string(theirs) + " and " + std::to_string(mine) + "); their parts do not belong together");
      };
      differs("for different numbers of writers", rank.num_writers, first.num_writers);
      differs("in different attempts", rank.attempt, first.attempt);
      if (rank.stems != first.stems) {
        refuse("ranks " + std::to_string(first.rank) + " and " + std::to_string(rank.rank) +
               " gave different tensors, shapes, metadata or max_shard_bytes; all writers must give the same");
      }
    }
    if (!missing.empty()) refuse("the part of rank " + missing + " of " + std::to_string(first.num_writers) + " writers is missing");
  }

  void gather(const RankFile& rank) {
    for (const auto& written : rank.written) {
      auto& file = shared_.try_emplace(written.name, SharedFile{written.size, rank.rank, {}}).first->second;
      if (file.size != written.size) {
        refuse(written.name + " has " + std::to_string(file.size) + " bytes by rank " + std::to_string(file.first_rank) + " and " +
               std::to_string(written.size) + " by rank " + std::to_string(rank.rank));
      }
      for (const auto& segment : written.segments) file.segments.push_back({segment, rank.rank});
    }
  }

  void check_shared(const std::string& name, SharedFile& file) const {
    const auto source = files_.find(name);
    if (source == files_.end())
      refuse(name + ", which rank " + std::to_string(file.first_rank) + " recorded, is not there; ranks must write into one directory");
    const auto on_disk = file_system_.open(source->second.path, FileSystem::Access::Read)->size();
    if (on_disk != file.size) refuse(name + " has " + std::to_string(on_disk) + " of " + std::to_string(file.size) + " bytes");
    std::ranges::sort(file.segments,
                      [](const auto& a, const auto& b) { return std::tie(a.segment.begin, a.rank) < std::tie(b.segment.begin, b.rank); });
    std::uint64_t at = 0;
    int before = -1;
    for (const auto& [segment, rank] : file.segments) {
      if (segment.begin > at) refuse(bytes_text(at, segment.begin) + " of " + name + " were written by no rank");
      if (segment.begin < at) {
        refuse(bytes_text(segment.begin, std::min(at, segment.begin + segment.length)) + " of " + name + " were written by ranks " +
               std::to_string(std::min(before, rank)) + " and " + std::to_string(std::max(before, rank)));
      }
      at = segment.begin + segment.length;
      before = rank;
    }
    if (at != file.size) refuse(bytes_text(at, file.size) + " of " + name + " were written by no rank");
  }

  void add_shared(const std::string& name, const SharedFile& file) {
    FileRecord record{name, file.size, 0, {}, {}};
    for (const auto& [segment, rank] : file.segments) {
      record.segments.push_back(segment);
      if (!record.writers.empty() && record.writers.back().rank == rank) record.writers.back().end = segment.begin + segment.length;
      else record.writers.push_back({rank, segment.begin, segment.begin + segment.length});
    }
    record.digest = digest_of(record.segments);
    manifest_.files.push_back(std::move(record));
  }

  void add_plain(const std::string& name, const SourceFile& source) {
    const auto file = file_system_.open(source.path, FileSystem::Access::Read);
    FileRecord record{name, 0, 0, digest_file(*file), {}};
    if (!record.segments.empty()) record.size = record.segments.back().begin + record.segments.back().length;
    record.digest = digest_of(record.segments);
    const auto rank = rank_in_name(name);
    if (record.size > 0) record.writers.push_back({rank ? *rank : source.rank, 0, record.size});
    manifest_.files.push_back(std::move(record));
  }

  void take_state(const RankFile& first) {
    manifest_.num_writers = first.num_writers;
    manifest_.attempt = first.attempt;
    if (first.state) {
      manifest_.step = first.state->step;
      manifest_.epoch = first.state->epoch;
      manifest_.world_size = first.state->world_size;
      manifest_.strategy = first.state->strategy;
    }
    for (auto tensor : first.tensors) {
      const auto* file = manifest_.find_file(first.written[tensor.file].name);
      tensor.file = static_cast<std::uint32_t>(file - manifest_.files.data());
      manifest_.tensors.push_back(std::move(tensor));
    }
  }

  FileSystem& file_system_;
  const SourceFiles& files_;
  const std::string& what_;
  Manifest& manifest_;
  std::vector<RankFile> ranks_;
  std::map<std::string, SharedFile> shared_;
};

}  // namespace

void assemble(FileSystem& file_system, const SourceFiles& files, const std::string& what, Manifest& manifest) {
  Assembly{file_system, files, what, manifest}.run();
}

std::vector<Segment> segments_of(std::string_view bytes) {
  std::vector<Segment> segments;
  for (std::uint64_t at = 0; at < bytes.size(); at += segment_bytes) {
    const auto part = bytes.substr(at, segment_bytes);
    segments.push_back({at, static_cast<std::uint32_t>(part.size()), digest_of(part)});
  }
  return segments;
}

}  // namespace troupe::detail
