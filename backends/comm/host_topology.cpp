#include "host_topology.hpp"

#include <troupe/errors.hpp>

#include <set>

namespace troupe::detail {

HostTopology::HostTopology(const std::vector<int>& hosts_by_rank, int own_rank, std::vector<int> names)
    : rank(own_rank), members(std::move(names)) {
  const auto size = static_cast<int>(hosts_by_rank.size());
  if (own_rank < 0 || own_rank >= size || members.size() != hosts_by_rank.size())
    throw Failure{Errc::InvalidArgument, "hosts: no rank " + std::to_string(own_rank) + " in a group of " + std::to_string(size)};
  std::set<int> seen;
  for (int r = 0; r < size; ++r) {
    const auto one = hosts_by_rank[static_cast<std::size_t>(r)];
    if (r > 0 && one == hosts_by_rank[static_cast<std::size_t>(r) - 1]) continue;
    if (!seen.insert(one).second)
      throw Failure{Errc::InvalidArgument, "hosts: the ranks of host " + std::to_string(one) + " do not follow each other"};
    first.push_back(r);
  }
  first.push_back(size);
  host = host_of(rank);
  lanes = ranks_of(0);
  for (int h = 1; h < hosts(); ++h) lanes = std::min(lanes, ranks_of(h));
}

std::vector<int> HostTopology::host_of_all() const {
  std::vector<int> all;
  for (int r = 0; r < size(); ++r) all.push_back(host_of(r));
  return all;
}

}  // namespace troupe::detail
