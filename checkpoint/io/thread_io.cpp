#include "async_io.hpp"

#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <thread>
#include <vector>

namespace troupe::detail {

namespace {

struct Operation {
  AsyncIo::Kind kind = AsyncIo::Kind::Read;
  std::byte* data = nullptr;
  std::size_t bytes = 0;
  std::int64_t offset = 0;
  bool busy = false;
  int error = 0;
};

/// What caller and thread share; the thread keeps it alive when a stuck disk makes the caller leave first.
struct Shared {
  std::mutex mutex;
  std::condition_variable changed;
  std::deque<int> queue;
  std::vector<Operation> operations;
  bool stop = false;
};

int move_all(int fd, Operation operation) {
  while (operation.bytes > 0) {
    const auto moved = operation.kind == AsyncIo::Kind::Read ? ::pread(fd, operation.data, operation.bytes, operation.offset)
                                                              : ::pwrite(fd, operation.data, operation.bytes, operation.offset);
    if (moved < 0 && errno == EINTR) continue;
    if (moved < 0) return errno;
    if (moved == 0) return EIO;
    operation.data += moved;
    operation.bytes -= static_cast<std::size_t>(moved);
    operation.offset += moved;
  }
  return 0;
}

void serve(int fd, const std::shared_ptr<Shared>& shared) {
  std::unique_lock lock{shared->mutex};
  for (;;) {
    shared->changed.wait(lock, [&] { return shared->stop || !shared->queue.empty(); });
    if (shared->queue.empty()) return;
    auto& operation = shared->operations[static_cast<std::size_t>(shared->queue.front())];
    shared->queue.pop_front();
    const auto copy = operation;
    lock.unlock();
    const int error = move_all(fd, copy);
    lock.lock();
    operation.error = error;
    operation.busy = false;
    shared->changed.notify_all();
  }
}

class ThreadIo final : public AsyncIo {
 public:
  ThreadIo(int fd, int num_tickets) {
    shared_->operations.resize(static_cast<std::size_t>(num_tickets));
    thread_ = std::thread{[fd, shared = shared_] { serve(fd, shared); }};
  }
  ~ThreadIo() override {
    {
      const std::lock_guard lock{shared_->mutex};
      shared_->stop = true;
      shared_->changed.notify_all();
    }
    if (stuck_) thread_.detach();
    else thread_.join();
  }

  void begin(int ticket, Kind kind, void* data, std::size_t bytes, std::int64_t offset) override {
    const std::lock_guard lock{shared_->mutex};
    shared_->operations[static_cast<std::size_t>(ticket)] = {kind, static_cast<std::byte*>(data), bytes, offset, true, 0};
    shared_->queue.push_back(ticket);
    shared_->changed.notify_all();
  }

  int wait(int ticket) override {
    std::unique_lock lock{shared_->mutex};
    auto& operation = shared_->operations[static_cast<std::size_t>(ticket)];
    if (!shared_->changed.wait_for(lock, std::chrono::minutes{2}, [&] { return !operation.busy; })) {
      stuck_ = true;
      return ETIMEDOUT;
    }
    return operation.error;
  }

 private:
  std::shared_ptr<Shared> shared_ = std::make_shared<Shared>();
  std::thread thread_;
  bool stuck_ = false;
};

}  // namespace

std::unique_ptr<AsyncIo> make_thread_io(int fd, int num_tickets) { return std::make_unique<ThreadIo>(fd, num_tickets); }

}  // namespace troupe::detail
