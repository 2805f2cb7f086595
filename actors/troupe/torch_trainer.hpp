#pragma once

#include <troupe/data_config.hpp>
#include <troupe/result.hpp>
#include <troupe/run_options.hpp>
#include <troupe/session.hpp>

#include <exception>
#include <functional>
#include <memory>

namespace troupe {

class Cluster;

struct TrainerOptions {
  ScalingConfig scaling;
  RunConfig run;
  DataConfig dataset_config;  ///< of the session's data sets
  std::shared_ptr<Cluster> cluster;  ///< on whose nodes the ranks are, with Placement::Nodes
  /// Called on the thread in `fit()` for every report, in order.
  std::function<void(const ReportRecord&)> on_report;
};

/// Runs a train function on a group of ranks: Ray Train's TorchTrainer. A facade over `spawn_trainer`
/// (troupe/trainer.hpp), with an actor system of its own, a progress display and Ctrl-C handling.
class TorchTrainer {
 public:
  /// Throws Failure{NotFound} when the session has no such function or data set, Failure{InvalidConfig} for bad options.
  TorchTrainer(const Session& session, std::string train_function, Config train_loop_config, TrainerOptions options);

  /// Blocks until the run is over. Never throws for what happens in the run: see Result::error.
  /// While it runs, SIGINT and SIGTERM stop at a step boundary; a second one stops at once.
  [[nodiscard]] Result fit();

 private:
  /// Throws what keeps a run from being driven at all. @param thrown_by_user what on_report threw.
  Result run(std::exception_ptr& thrown_by_user) const;

  const Session& session_;
  std::string function_;
  Config config_;
  TrainerOptions options_;
};

}  // namespace troupe
