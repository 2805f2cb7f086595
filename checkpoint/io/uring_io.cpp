#include "async_io.hpp"

#if TROUPE_HAVE_LIBURING

#include <liburing.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <vector>

namespace troupe::detail {

namespace {

constexpr std::size_t kMost = std::size_t{1} << 30;  // of one submission: its length has 32 bits

class UringIo final : public AsyncIo {
 public:
  UringIo(int fd, int num_tickets) : fd_(fd), operations_(static_cast<std::size_t>(num_tickets)) {
    // Each ticket has one submission at a time; wait_cqe_timeout may need one more.
    ready_ = io_uring_queue_init(static_cast<unsigned>(num_tickets) + 1, &ring_, 0) == 0;
  }
  ~UringIo() override {
    if (!ready_) return;
    for (std::size_t t = 0; t < operations_.size() && !stuck_; ++t) (void)wait(static_cast<int>(t));
    io_uring_queue_exit(&ring_);
  }
  [[nodiscard]] bool ready() const noexcept { return ready_; }

  void begin(int ticket, Kind kind, void* data, std::size_t bytes, std::int64_t offset) override {
    operations_[static_cast<std::size_t>(ticket)] = {kind, static_cast<char*>(data), bytes, offset, bytes > 0, 0};
    if (bytes > 0) submit(ticket);
  }

  int wait(int ticket) override {
    const auto& operation = operations_[static_cast<std::size_t>(ticket)];
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::minutes{2};
    while (operation.busy) {
      const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(deadline - std::chrono::steady_clock::now()).count();
      if (left <= 0) {
        stuck_ = true;
        return ETIMEDOUT;
      }
      __kernel_timespec limit{.tv_sec = left / 1000, .tv_nsec = left % 1000 * 1'000'000};
      io_uring_cqe* done = nullptr;
      const int error = io_uring_wait_cqe_timeout(&ring_, &done, &limit);
      if (error == -ETIME || error == -EINTR || error == -EAGAIN) continue;
      if (error < 0) return -error;
      const auto data = io_uring_cqe_get_data64(done);
      const int result = done->res;
      io_uring_cqe_seen(&ring_, done);
      if (data < operations_.size()) finish(static_cast<int>(data), result);  // else wait_cqe_timeout's own
    }
    return operation.error;
  }

 private:
  struct Operation {
    Kind kind = Kind::Read;
    char* data = nullptr;
    std::size_t bytes = 0;
    std::int64_t offset = 0;
    bool busy = false;
    int error = 0;
  };

  void submit(int ticket) {
    auto& o = operations_[static_cast<std::size_t>(ticket)];
    auto* entry = io_uring_get_sqe(&ring_);
    if (!entry) return fail(o, EBUSY);
    const auto bytes = static_cast<unsigned>(std::min(o.bytes, kMost));
    if (o.kind == Kind::Read) io_uring_prep_read(entry, fd_, o.data, bytes, static_cast<std::uint64_t>(o.offset));
    else io_uring_prep_write(entry, fd_, o.data, bytes, static_cast<std::uint64_t>(o.offset));
    io_uring_sqe_set_data64(entry, static_cast<std::uint64_t>(ticket));
    const int submitted = io_uring_submit(&ring_);
    if (submitted < 0) fail(o, -submitted);
  }

  void finish(int ticket, int result) {
    auto& o = operations_[static_cast<std::size_t>(ticket)];
    if (result == -EINTR || result == -EAGAIN) return submit(ticket);
    if (result <= 0) return fail(o, result == 0 ? EIO : -result);
    o.data += result;
    o.bytes -= static_cast<std::size_t>(result);
    o.offset += result;
    if (o.bytes > 0) submit(ticket);
    else o.busy = false;
  }

  static void fail(Operation& o, int error) {
    o.error = error;
    o.busy = false;
  }

  int fd_;
  io_uring ring_{};
  bool ready_ = false;
  bool stuck_ = false;
  std::vector<Operation> operations_;
};

}  // namespace

std::unique_ptr<AsyncIo> make_uring_io(int fd, int num_tickets) {
  auto io = std::make_unique<UringIo>(fd, num_tickets);
  if (!io->ready()) return nullptr;
  return io;
}

}  // namespace troupe::detail

#else

namespace troupe::detail {
std::unique_ptr<AsyncIo> make_uring_io(int, int) { return nullptr; }
}  // namespace troupe::detail

#endif
