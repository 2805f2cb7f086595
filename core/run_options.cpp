#include <troupe/chaos.hpp>
#include <troupe/errors.hpp>
#include <troupe/run_options.hpp>

namespace troupe {

namespace {

void check_range(const std::string& field, long value, long lowest, long highest) {
  if (value >= lowest && value <= highest) return;
  throw Failure{Errc::InvalidConfig, field + " is " + std::to_string(value) + "; it must be from " +
                                         std::to_string(lowest) + " to " + std::to_string(highest)};
}

void check_positive(const std::string& field, std::chrono::milliseconds value) {
  if (value.count() > 0) return;
  throw Failure{Errc::InvalidConfig, field + " is " + std::to_string(value.count()) + " ms; it must be more than 0"};
}

void validate_nodes(const ScalingConfig& scaling) {
  const auto& needs = scaling.resources_per_worker;
  try {
    check(needs);
  } catch (const Failure& failure) {
    throw Failure{failure.code(), std::string("ScalingConfig.resources_per_worker: ") + failure.what()};
  }
  if (scaling.placement == Placement::Nodes) return;
  const char* unused = needs != Resources{} ? "resources_per_worker" : scaling.placement_strategy != PlacementStrategy::Pack ? "placement_strategy"
                       : !scaling.worker_labels.empty() ? "worker_labels" : nullptr;
  if (unused) throw Failure{Errc::InvalidConfig, std::string("ScalingConfig.") + unused + " is set, but ranks are " + name(scaling.placement) +
                                                     "; it is for placement = Placement::Nodes with TrainerOptions::cluster"};
}

}  // namespace

const char* name(Placement placement) noexcept {
  return placement == Placement::Threads ? "threads" : placement == Placement::Processes ? "processes" : "processes of nodes";
}

Resources resources_of_rank(const ScalingConfig& scaling) {
  auto needs = scaling.resources_per_worker;
  if (needs.cpus == 0) needs.cpus = scaling.cpus_per_worker;
  if (needs.gpus == 0 && scaling.use_gpu) needs.gpus = 1;
  return needs;
}

void validate(const ScalingConfig& scaling) {
  validate_nodes(scaling);
  check_range("ScalingConfig.num_workers", scaling.num_workers, 1, 16'384);
  check_range("ScalingConfig.cpus_per_worker", scaling.cpus_per_worker, 1, 4096);
  check_range("ScalingConfig.min_workers", scaling.min_workers, 0, scaling.num_workers);
  check_range("ScalingConfig.spare_workers", scaling.spare_workers, 0, scaling.num_workers);
  if (scaling.grow_after.count() < 0) {
    throw Failure{Errc::InvalidConfig, "ScalingConfig.grow_after is " + std::to_string(scaling.grow_after.count()) + " ms; it must be 0 (never) or more"};
  }
}

void validate(const RunConfig& run) {
  if (run.name.find('/') != std::string::npos || run.name.find('\0') != std::string::npos || run.name == "." ||
      run.name == ".." || run.name.size() > 200) {
    throw Failure{Errc::InvalidConfig, "RunConfig.name is '" + run.name.substr(0, 200) +
                                           "'; it must be one directory's name: no '/', not '.' or '..', at most 200 bytes"};
  }
  if (run.storage_path.empty()) throw Failure{Errc::InvalidConfig, "RunConfig.storage_path is empty"};
  if (run.storage_path.is_url()) (void)parse_store_url(run.storage_path.text());
  if (run.failure.max_failures < -1) {
    throw Failure{Errc::InvalidConfig, "FailureConfig.max_failures is " + std::to_string(run.failure.max_failures) +
                                           "; it must be -1 (no limit) or more"};
  }
  if (run.failure.failure_window.count() < 0) {
    throw Failure{Errc::InvalidConfig, "FailureConfig.failure_window is " + std::to_string(run.failure.failure_window.count()) +
                                           " ms; it must be 0 (the whole run) or more"};
  }
  check_range("FailureConfig.crash_loop_limit", run.failure.crash_loop_limit, 1, 1'000'000'000);
  check_range("FailureConfig.snapshot_every", run.failure.snapshot_every, 0, 1'000'000'000);
  check_range("FailureConfig.max_rank_failures", run.failure.max_rank_failures, -1, 1'000'000'000);
  check_range("FailureConfig.max_group_failures", run.failure.max_group_failures, -1, 1'000'000'000);
  if (!run.failure.snapshot_path.is_absolute()) {
    throw Failure{Errc::InvalidConfig, "FailureConfig.snapshot_path is '" + run.failure.snapshot_path.string() + "'; it must be an absolute path"};
  }
  if (run.time_limit.count() < 0) {
    throw Failure{Errc::InvalidConfig, "RunConfig.time_limit is " + std::to_string(run.time_limit.count()) + " ms; it must be 0 (none) or more"};
  }
  if (run.checkpoint.num_to_keep) check_range("CheckpointConfig.num_to_keep", *run.checkpoint.num_to_keep, 1, 1'000'000'000);
  const auto& order = run.checkpoint.checkpoint_score_order;
  if (order != "max" && order != "min") {
    throw Failure{Errc::InvalidConfig, "CheckpointConfig.checkpoint_score_order is '" + order + "'; it must be 'max' or 'min'"};
  }
  check_positive("RunConfig.start_timeout", run.start_timeout);
  check_positive("RunConfig.collective_timeout", run.collective_timeout);
  check_positive("RunConfig.step_timeout", run.step_timeout);
  check_positive("RunConfig.stop_grace", run.stop_grace);
  check_positive("RunConfig.upload_timeout", run.upload_timeout);
  (void)parse_chaos(run.chaos);
}

}  // namespace troupe
