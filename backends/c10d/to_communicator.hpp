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
};

[[nodiscard]] std::unique_ptr<Communicator> make_c10d_communicator(C10dParts parts);

}  // namespace troupe::detail
