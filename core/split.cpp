#include <troupe/errors.hpp>
#include <troupe/split.hpp>

#include <algorithm>
#include <string>

namespace troupe {

IndexRange split_range(std::int64_t length, int num_ranks, int rank) {
  if (length < 0 || num_ranks < 1 || rank < 0 || rank >= num_ranks) {
    throw Failure{Errc::InvalidArgument, "split_range: " + std::to_string(length) + " items for rank " + std::to_string(rank) +
                                             " of " + std::to_string(num_ranks)};
  }
  const auto each = length / num_ranks;
  const auto extra = length % num_ranks;
  return {rank * each + std::min<std::int64_t>(rank, extra), each + (rank < extra ? 1 : 0)};
}

std::int64_t longest_split(std::int64_t length, int num_ranks) { return split_range(length, num_ranks, 0).count; }

}  // namespace troupe
