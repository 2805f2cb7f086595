#pragma once

#include <troupe/checkpoint_files.hpp>
#include <troupe/pending_save.hpp>

#include <chrono>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>

namespace troupe::detail {

/// Writes one rank's saves beside training: the caller pays for a copy, a thread of low priority for the rest. One at a time.
///
/// Threads: one caller; `stopping` also the writer. The destructor waits for the save under way.
class BackgroundSaver {
 public:
  using Write = std::function<void(PartSnapshot& snapshot)>;
  using Ended = std::function<void(const Outcome& outcome)>;

  BackgroundSaver();
  ~BackgroundSaver();
  BackgroundSaver(const BackgroundSaver&) = delete;
  BackgroundSaver& operator=(const BackgroundSaver&) = delete;

  /// Takes memory for a snapshot of `bytes`, on the saver's thread.
  void reserve(std::size_t bytes);
  /// A save is being written.
  [[nodiscard]] bool busy() const;
  /// Until nothing is under way.
  void wait() const;
  /// Waits for the save before, copies, and returns. `write` runs on the saver's thread and throws when it fails; `ended` then
  /// hears how it ended, before the PendingSave does. Throws as PartSnapshot's constructor; nothing is under way then.
  std::shared_ptr<PendingSave> start(const CheckpointPart& part, Write write, Ended ended);
  /// True when `write` should wait for nobody any more: the saver is being destroyed.
  [[nodiscard]] bool stopping() const;

 private:
  void submit(std::function<void()> job);
  void work();

  mutable std::mutex mutex_;
  mutable std::condition_variable changed_;
  std::function<void()> job_;
  bool running_ = false;  // a job
  bool saving_ = false;   // it is a save that has not ended
  bool end_ = false;
  std::chrono::steady_clock::time_point patience_{};  // once end_
  SnapshotPool pool_;
  std::thread thread_;  // begun with the first job
};

}  // namespace troupe::detail
