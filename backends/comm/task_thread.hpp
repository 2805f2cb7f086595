#pragma once

#include <troupe/start_limits.hpp>

#include <condition_variable>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>

namespace troupe::detail {

/// A thread that does tasks in the order they came. Its end does what is left first. Threads: any may push. Tasks must not throw.
/// Making one throws Failure{StartFailed}.
class TaskThread {
 public:
  TaskThread() : thread_(start_thread("collectives", [this] { loop(); })) {}
  ~TaskThread() {
    push(nullptr);
    thread_.join();
  }
  TaskThread(const TaskThread&) = delete;
  TaskThread& operator=(const TaskThread&) = delete;

  void push(std::function<void()> task) {
    {
      const std::lock_guard lock{mutex_};
      tasks_.push_back(std::move(task));
    }
    changed_.notify_one();
  }

 private:
  void loop() {
    for (;;) {
      std::unique_lock lock{mutex_};
      changed_.wait(lock, [this] { return !tasks_.empty(); });
      const auto task = std::move(tasks_.front());
      tasks_.pop_front();
      lock.unlock();
      if (!task) return;
      task();
    }
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::function<void()>> tasks_;
  std::thread thread_;  // last: it uses the rest
};

}  // namespace troupe::detail
