#pragma once

#include <troupe/buffer.hpp>

#include <algorithm>
#include <cstddef>
#include <string>
#include <vector>

namespace troupe::detail {

/// Where the ranks of a group are, and which of them talk over the network.
///
/// Lane l is made of the ranks of place l on each host: they are connected with each other, so what hosts exchange goes over as many
/// connections as the smallest host has ranks. Ranks of later places take part inside their host only.
struct HostTopology {
  int rank = 0;
  std::vector<int> first;    ///< [H+1] rank of each host's place 0, and the number of ranks
  std::vector<int> members;  ///< what people know the ranks by
  int host = 0;              ///< of `rank`
  int lanes = 1;             ///< places that every host has

  /// Throws Failure{InvalidArgument} when a host has no rank, or there is no `rank`.
  HostTopology(const std::vector<int>& ranks_on, int rank, std::vector<int> members);

  [[nodiscard]] int size() const noexcept { return first.back(); }
  [[nodiscard]] int hosts() const noexcept { return static_cast<int>(first.size()) - 1; }
  [[nodiscard]] int ranks_of(int h) const noexcept { return begin(h + 1) - begin(h); }
  [[nodiscard]] int begin(int h) const noexcept { return first[static_cast<std::size_t>(h)]; }
  [[nodiscard]] int place() const noexcept { return rank - begin(host); }
  [[nodiscard]] bool in_lane() const noexcept { return place() < lanes; }
  [[nodiscard]] int host_of(int r) const noexcept {
    return static_cast<int>(std::upper_bound(first.begin(), first.end(), r) - first.begin()) - 1;
  }
  [[nodiscard]] int name_of(int r) const noexcept { return members[static_cast<std::size_t>(r)]; }
  /// This host's ranks, by the names people know.
  [[nodiscard]] std::vector<int> names_here() const { return {members.begin() + begin(host), members.begin() + begin(host + 1)}; }
};

/// Where part `i` of `parts` of `count` elements begins, on a cache line.
[[nodiscard]] inline std::size_t cut(std::size_t count, int i, int parts, std::size_t element) noexcept {
  if (i >= parts) return count;
  const auto line = std::max<std::size_t>(64 / element, 1);
  const auto at = count * static_cast<std::size_t>(i) / static_cast<std::size_t>(parts);
  return std::min(count, (at + line - 1) / line * line);
}

}  // namespace troupe::detail
