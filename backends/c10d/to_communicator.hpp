#pragma once

#include <troupe/c10d.hpp>

#include "../comm/shared_state.hpp"

#include <functional>

namespace troupe::detail {

struct C10dParts {
  c10::intrusive_ptr<c10d::Backend> backend;
  std::string name;
  std::chrono::milliseconds timeout;
  /// Where the ranks tell each other what they call and why they end; of one rank when they cannot.
  std::shared_ptr<SharedState> board;
  /// Ends what the backend has under way.
  std::function<void()> close;
  /// Takes seat `rank` in a new group of `members` of the board's ranks, whose every rank makes this call with the same
  /// `key`. None: there is no way.
  std::function<std::unique_ptr<Communicator>(const std::string& key, int rank, const std::vector<int>& members,
                                              std::chrono::milliseconds timeout)>
      split;
};

[[nodiscard]] std::unique_ptr<Communicator> make_c10d_communicator(C10dParts parts);

}  // namespace troupe::detail
