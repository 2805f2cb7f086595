#pragma once

#include <troupe/profile_schedule.hpp>

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>

namespace troupe {

/// Names as in Accelerate's ProfileKwargs, as far as they apply.
struct ProfileKwargs {
  /// Which steps to record, by Profiler::step(); nothing: everything from beginning to end.
  std::optional<ProfileSchedule> schedule_option = {};
  /// Called with each trace file once it is written.
  std::function<void(const std::filesystem::path&)> on_trace_ready = {};
  bool record_shapes = false;  ///< of operators' tensors
  /// Made when it is not there. Empty: no file is written.
  std::filesystem::path output_trace_dir = {};
};

/// Records the operators, backward functions and user scopes (RECORD_USER_SCOPE) that the calling thread runs, forward
/// and backward, through LibTorch's RecordFunction, and writes them as a Chrome trace (chrome://tracing, Perfetto):
/// profile_<rank>.json, for later cycles of a schedule profile_<rank>_<cycle>.json. Times are those of the host's
/// steady clock, so the traces of a host's ranks can be laid side by side.
///
/// Threads: made, stepped and destroyed on the rank's own; one at a time per thread. Errors: Failure{InvalidArgument}
/// on a bad schedule or a second profiler, Failure{StorageUnavailable} from step() and stop().
class Profiler {
 public:
  Profiler(ProfileKwargs kwargs, int rank);
  /// As stop(), but an error is only printed.
  ~Profiler();
  Profiler(Profiler&&) noexcept;
  Profiler& operator=(Profiler&&) = delete;

  /// A training step ends.
  void step();
  /// Ends recording, and writes what is not written yet.
  void stop();
  /// Recorded since recording last began.
  [[nodiscard]] std::size_t num_events() const noexcept;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace troupe
