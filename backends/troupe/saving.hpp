#pragma once

#include <chrono>
#include <concepts>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace troupe {

/// What became of the snapshots in memory that were due on this rank (docs/snapshots.md).
struct SnapshotCounts {
  std::int64_t taken = 0;
  std::int64_t skipped = 0;     ///< another rank had not said yet how the last one went, or has stopped taking any
  std::int64_t not_finite = 0;  ///< parameters or optimizer state held infinity, or what is no number
  bool off = false;             ///< none will be taken any more; the log has said why
};

/// A number of bytes, or text as Accelerate and Transformers take it: "10GB" (10⁹), "5GiB" (2³⁰), "300MB", "4096".
class ByteSize {
 public:
  template <std::integral T>
  ByteSize(T bytes) : bytes_(static_cast<std::uint64_t>(bytes)) {}
  /// Throws Failure{InvalidArgument} for what is no size.
  ByteSize(const char* text);
  ByteSize(const std::string& text) : ByteSize(text.c_str()) {}
  [[nodiscard]] std::uint64_t bytes() const noexcept { return bytes_; }

 private:
  std::uint64_t bytes_ = 0;
};

/// What becomes of a save when this rank still writes the one before.
enum class WhenBusy : std::uint8_t {
  Wait,  ///< the step waits for that one
  Skip,  ///< the new one is not made on any rank, and counted
};

/// How an Accelerator writes checkpoints.
struct CheckpointOptions {
  /// `checkpoint()` and `save_state()` return once this rank's share of the state is copied to memory that is used again and
  /// again; a thread of low priority writes it. One save at a time. An error is no exception then, but the end of
  /// the PendingSave, and a line on stderr; training goes on. Optimizer state on disk is not copied: those saves are written at once.
  bool async = false;
  WhenBusy when_busy = WhenBusy::Wait;
  ByteSize max_shard_size = "10GB";  ///< of tensors in one file; 0: never split
  /// How long rank 0 waits for the other ranks' parts of an asynchronous save_state.
  std::chrono::milliseconds parts_timeout = std::chrono::minutes{10};
};

/// As Accelerate's: save_state() without a directory saves to project_dir/checkpoints/checkpoint_<iteration>.
struct ProjectConfiguration {
  std::filesystem::path project_dir{};
  bool automatic_checkpoint_naming = false;
  /// Keeps this many of them: the lowest numbers go, once the new one is whole (Accelerate removes them before).
  std::optional<int> total_limit{};
  /// Of the next save. load_state() sets it behind the newest one.
  std::int64_t iteration = 0;
};

struct LoadOptions {
  /// Every tensor there must have its place and the other way round, and all that was saved must have been prepared. Otherwise what fits
  /// is loaded. A tensor of another shape is an error in any case.
  bool strict = true;
};

/// What did not fit, of a load that was not strict.
struct LoadReport {
  std::filesystem::path directory;      ///< that was loaded
  std::vector<std::string> missing;     ///< what is prepared and not in the checkpoint, which stays as it is
  std::vector<std::string> unexpected;  ///< what is in the checkpoint and not prepared
};

struct SaveModelOptions {
  ByteSize max_shard_size = "10GB";  ///< 0: one file
  /// Saves floating-point weights in 16 bits, rounded to nearest; nothing: as the masters are.
  enum class Dtype : std::uint8_t { Same, BF16, F16, F32 } dtype = Dtype::Same;
};

/// Since the Accelerator began.
struct SaveCounts {
  std::int64_t written = 0;  ///< this rank's part is durable
  std::int64_t failed = 0;
  std::int64_t skipped = 0;  ///< see WhenBusy::Skip
};

/// An object of the user's whose state goes with checkpoints, as bytes.
template <class T>
concept Checkpointable = requires(T& object, const T& saved, const std::string& bytes) {
  { saved.state_dict() } -> std::convertible_to<std::string>;
  object.load_state_dict(bytes);
};

/// Takes a hook away again, at most once; destroying it leaves the hook.
class RemovableHandle {
 public:
  RemovableHandle() = default;
  explicit RemovableHandle(std::function<void()> remove) : remove_(std::move(remove)) {}
  void remove() {
    if (auto remove = std::exchange(remove_, nullptr)) remove();
  }

 private:
  std::function<void()> remove_;
};

}  // namespace troupe
