#pragma once

#include <troupe/sharding_options.hpp>
#include <troupe/train_context.hpp>

#include <filesystem>
#include <map>
#include <string>
#include <vector>

namespace troupe::test {

/// How a reference curve was trained, as its curve_<mode>.json tells.
struct TrajectoryMode {
  std::string name;
  int processes = 1;
  std::int64_t batch_size = 16;  ///< per process and micro-batch
  int accumulation = 1;
  double clip = 0;  ///< 0: none
  double weight_decay = 0.01;
  bool no_decay = false;  ///< none on biases and LayerNorm weights
  bool bf16 = false;
  double lr = 0;  ///< at the end of warm-up
  std::int64_t warmup = 0;
  ShardingOptions sharding{};
  bool steps_scheduler_per_process = false;
};

/// Throws when the file does not say.
[[nodiscard]] TrajectoryMode read_mode(const std::filesystem::path& file);
/// Names of the modes in the golden data.
[[nodiscard]] std::vector<std::string> trajectory_modes();

/// What training gave, the same on every rank; parameters of sharded models on rank 0 only.
struct Trajectory {
  std::vector<double> losses;
  std::vector<double> lrs;
  std::vector<double> grad_norms;
  std::map<std::string, double> parameter_l2;
};

/// Trains `mode` with its global batch divided over the ranks there are.
[[nodiscard]] Trajectory train(TrainContext& context, const TrajectoryMode& mode);
/// Throws std::runtime_error naming the first value that is off.
void compare_with_golden(const Trajectory& trajectory, const TrajectoryMode& mode);

}  // namespace troupe::test
