#include "host_topology.hpp"

#include <troupe/errors.hpp>

namespace troupe::detail {

HostTopology::HostTopology(const std::vector<int>& ranks_on, int own_rank, std::vector<int> names) : rank(own_rank), members(std::move(names)) {
  first.push_back(0);
  lanes = ranks_on.empty() ? 0 : ranks_on.front();
  for (const int ranks : ranks_on) {
    if (ranks < 1) throw Failure{Errc::InvalidArgument, "hosts: host " + std::to_string(hosts()) + " has " + std::to_string(ranks) + " ranks"};
    first.push_back(first.back() + ranks);
    lanes = std::min(lanes, ranks);
  }
  if (own_rank < 0 || own_rank >= size() || members.size() != static_cast<std::size_t>(size()))
    throw Failure{Errc::InvalidArgument, "hosts: no rank " + std::to_string(own_rank) + " in a group of " + std::to_string(size())};
  host = host_of(rank);
}

}  // namespace troupe::detail
