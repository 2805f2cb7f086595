#pragma once

#include "rank_channel.hpp"

#include <troupe/messages.hpp>

#include <caf/allowed_unsafe_message_type.hpp>
#include <caf/fwd.hpp>

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace troupe {

/// What runs a rank's train function beside its control actor: a thread. In simulations, the simulator.
/// Destroyed while it still runs, it goes on alone, and its rank is heard no more.
class RankWorker {
 public:
  virtual ~RankWorker() = default;
  /// Waits until nothing of it is left. Called once, after its WorkerEnded has come.
  virtual void join() = 0;
};

/// Worker to control actor: its last words.
struct WorkerEnded {
  std::optional<RunError> error;
  std::vector<std::string> unused_config_keys;
};

/// Begins to run the order's train function. The worker speaks over the channel: RankStarted first, WorkerEnded last. It lets
/// go of `seat` before that. Throws Failure{NotFound, StartFailed}.
using StartWorker = std::function<std::unique_ptr<RankWorker>(const RunRank& order, std::shared_ptr<RankChannel> channel,
                                                              std::shared_ptr<Communicator> seat)>;

/// As `spawn_thread_rank`, with a worker of one's own.
[[nodiscard]] caf::actor spawn_rank(caf::actor_system& system, StartWorker start_worker, std::shared_ptr<Communicator> seat,
                                    caf::actor group);

}  // namespace troupe

CAF_ALLOW_UNSAFE_MESSAGE_TYPE(troupe::WorkerEnded)
