#pragma once

#include <troupe/checkpoint_files.hpp>

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace troupe::detail {

/// What rank_0000i.troupe holds: a rank's record of what it wrote, and its state.
struct RankFile {
  struct Stem {
    std::string name;
    std::uint64_t layout_digest = 0;
    bool operator==(const Stem&) const = default;
  };
  struct Written {
    std::string name;
    std::uint64_t size = 0;         ///< of the whole file
    std::vector<Segment> segments;  ///< that this rank wrote, by offset
  };
  std::int32_t rank = 0;
  std::int32_t num_writers = 1;
  std::uint64_t attempt = 0;
  std::vector<Stem> stems;
  std::vector<Written> written;
  std::vector<StoredTensor> tensors;  ///< rank 0's only; `file` is a place in `written`
  std::optional<TrainState> state;    ///< rank 0's only
  RankState own;
};

[[nodiscard]] std::string to_bytes(const RankFile& file);
/// Memory is bounded by the bytes given. Throws Failure{FileCorrupt} that begins with `what`.
[[nodiscard]] RankFile rank_file_from_bytes(std::string_view bytes, std::string_view what);
/// The rank in "rank_00003.troupe"; nothing for other names.
[[nodiscard]] std::optional<int> rank_in_name(std::string_view name) noexcept;

}  // namespace troupe::detail
