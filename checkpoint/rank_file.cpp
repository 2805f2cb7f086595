#include "rank_file.hpp"

#include "archive_records.hpp"
#include "layout.hpp"

#include <algorithm>
#include <charconv>
#include <cstdio>

namespace troupe {

namespace detail {

namespace {

constexpr std::string_view kMark{"TROUPE\0R", 8};
constexpr std::uint32_t kVersion = 1;
constexpr std::string_view kPrefix = "rank_", kSuffix = ".troupe";

}  // namespace

template <class Archive>
void serialize(Archive& archive, RankFile::Stem& stem) {
  archive(stem.name, stem.layout_digest);
}
template <class Archive>
void serialize(Archive& archive, RankFile::Written& written) {
  archive(written.name, written.size, written.segments);
}
template <class Archive>
void serialize(Archive& archive, RankFile& file) {
  archive(file.rank, file.num_writers, file.attempt, file.stems, file.written, file.tensors, file.state, file.own);
}

std::string to_bytes(const RankFile& file) { return frame(kMark, kVersion, file); }

RankFile rank_file_from_bytes(std::string_view bytes, std::string_view what) {
  auto file = unframe<RankFile>(bytes, kMark, kVersion, what);
  const auto refuse = [&](const std::string& why) { throw Failure{Errc::FileCorrupt, std::string(what) + ": " + why}; };
  if (file.num_writers < 1 || file.rank < 0 || file.rank >= file.num_writers) {
    refuse("is of rank " + std::to_string(file.rank) + " of " + std::to_string(file.num_writers) + " writers");
  }
  for (const auto& written : file.written) {
    if (!is_plain_name(written.name)) refuse("names the file '" + written.name + "', which is no plain path inside the checkpoint");
    std::uint64_t at = 0;
    for (const auto& segment : written.segments) {
      if (segment.begin < at || segment.begin > written.size || segment.length > written.size - segment.begin || segment.length == 0) {
        refuse("has a segment of " + written.name + " out of place, at byte " + std::to_string(segment.begin));
      }
      at = segment.begin + segment.length;
    }
  }
  for (const auto& tensor : file.tensors) {
    if (tensor.file >= file.written.size()) refuse("puts tensor '" + tensor.name + "' into a file that it does not name");
  }
  return file;
}

std::optional<int> rank_in_name(std::string_view name) noexcept {
  if (!name.starts_with(kPrefix) || !name.ends_with(kSuffix) || name.size() <= kPrefix.size() + kSuffix.size()) return std::nullopt;
  const auto digits = name.substr(kPrefix.size(), name.size() - kPrefix.size() - kSuffix.size());
  int rank = 0;
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), rank);
  if (error != std::errc{} || end != digits.data() + digits.size() || rank < 0 || name != rank_file_name(rank)) return std::nullopt;
  return rank;
}

}  // namespace detail

std::string rank_file_name(int rank) {
  char name[40];
  std::snprintf(name, sizeof name, "rank_%05d.troupe", rank);
  return name;
}

}  // namespace troupe
