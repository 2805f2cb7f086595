#include "arena.hpp"
#include "kernels.hpp"
#include "seat.hpp"

#include <troupe/local_groups.hpp>

#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <new>

namespace troupe {

namespace {

using detail::Call;

[[noreturn]] void wrong(const std::string& text) { throw Failure{Errc::InvalidArgument, text}; }

void check(const char* call, ConstBuffer buffer) {
  if (buffer.bytes % size_of(buffer.dtype) != 0)
    wrong(std::string{call} + ": " + std::to_string(buffer.bytes) + " bytes are no whole number of " + std::string{name(buffer.dtype)});
  if (buffer.bytes != 0 && buffer.data == nullptr) wrong(std::string{call} + ": no memory given");
}

void check_size(int size) {
  if (size < 1 || size > 4096) wrong("a group has 1 to 4096 ranks, not " + std::to_string(size));
}

class LocalCommunicator final : public Communicator {
 public:
  LocalCommunicator(std::shared_ptr<detail::SharedState> state, int rank, std::shared_ptr<detail::Arena> arena)
      : arena_(arena), seat_(std::make_shared<detail::Seat>(std::move(state), rank, std::move(arena))) {}
  ~LocalCommunicator() override { seat_->leave(); }

  int rank() const noexcept override { return seat_->rank(); }
  int size() const noexcept override { return seat_->state().size(); }
  std::string name() const override { return arena_ ? "shared_memory" : "threads"; }

  Work all_reduce(Buffer buffer, ReduceOp op) override {
    check("all_reduce", buffer);
    detail::check_reducible(buffer.dtype, op);
    return seat_->post({.call = Call::AllReduce, .op = op, .dtype = buffer.dtype, .input = buffer, .output = buffer});
  }
  Work reduce_scatter(ConstBuffer input, Buffer output, ReduceOp op) override {
    check("reduce_scatter", input);
    check("reduce_scatter", output);
    check_parts("reduce_scatter", input, output);
    detail::check_reducible(input.dtype, op);
    return seat_->post({.call = Call::ReduceScatter, .op = op, .dtype = input.dtype, .input = input, .output = output});
  }
  Work all_gather(ConstBuffer input, Buffer output) override {
    check("all_gather", input);
    check("all_gather", output);
    check_parts("all_gather", output, input);
    return seat_->post({.call = Call::AllGather, .dtype = input.dtype, .input = input, .output = output});
  }
  Work broadcast(Buffer buffer, int root) override {
    check("broadcast", buffer);
    if (root < 0 || root >= size()) wrong("broadcast: no rank " + std::to_string(root) + " in a group of " + std::to_string(size()));
    return seat_->post({.call = Call::Broadcast,
                        .dtype = buffer.dtype,
                        .root = root,
                        .input = root == rank() ? ConstBuffer{buffer} : ConstBuffer{},
                        .output = buffer});
  }
  Work barrier() override { return seat_->post({.call = Call::Barrier, .input = {}, .output = {}}); }

  void abort(const std::string& reason) noexcept override { seat_->state().fail(Errc::Aborted, reason); }
  std::shared_ptr<void> allocate(std::size_t bytes) override {
    if (arena_) return arena_->allocate(bytes);
    const std::align_val_t alignment{64};
    void* memory = ::operator new(bytes, alignment);
    std::memset(memory, 0, bytes);
    return {memory, [alignment](void* p) { ::operator delete(p, alignment); }};
  }
  void set_timeout(std::chrono::milliseconds timeout) override { seat_->set_timeout(timeout); }

 private:
  void check_parts(const char* call, ConstBuffer whole, ConstBuffer part) const {
    if (whole.dtype != part.dtype) wrong(std::string{call} + ": input and output of different types");
    if (whole.bytes != part.bytes * static_cast<std::size_t>(size()))
      wrong(std::string{call} + ": " + std::to_string(whole.bytes) + " bytes are not " + std::to_string(size()) + " times " +
            std::to_string(part.bytes));
  }

  std::shared_ptr<detail::Arena> arena_;
  std::shared_ptr<detail::Seat> seat_;
};

class MemfdGroup final : public SharedGroup {
 public:
  MemfdGroup(int fd, std::shared_ptr<detail::SharedState> state) : fd_(fd), state_(std::move(state)) {}
  ~MemfdGroup() override { close(fd_); }
  int fd() const noexcept override { return fd_; }
  int size() const noexcept override { return state_->size(); }
  void abort(const std::string& reason) noexcept override { state_->fail(Errc::Aborted, reason); }

 private:
  int fd_;
  std::shared_ptr<detail::SharedState> state_;
};

}  // namespace

std::vector<std::unique_ptr<Communicator>> make_thread_group(int size, std::chrono::milliseconds timeout) {
  check_size(size);
  const auto state = detail::SharedState::of_threads(size, timeout);
  std::vector<std::unique_ptr<Communicator>> seats;
  for (int r = 0; r < size; ++r) seats.push_back(std::make_unique<LocalCommunicator>(state, r, nullptr));
  return seats;
}

std::unique_ptr<SharedGroup> SharedGroup::create(int size, std::chrono::milliseconds timeout) {
  check_size(size);
  const int fd = memfd_create("troupe-group", MFD_CLOEXEC | MFD_ALLOW_SEALING);
  if (fd < 0) throw Failure{Errc::StartFailed, std::string{"shared memory group: memfd: "} + std::strerror(errno) + " (see ulimit -n)"};
  try {
    return std::make_unique<MemfdGroup>(fd, detail::SharedState::create(fd, size, timeout));
  } catch (...) {
    close(fd);
    throw;
  }
}

std::unique_ptr<Communicator> SharedGroup::join(int fd, int rank) {
  auto state = detail::SharedState::open(fd);
  if (rank < 0 || rank >= state->size())
    wrong("shared memory group: no rank " + std::to_string(rank) + " in a group of " + std::to_string(state->size()));
  if (state->rank(rank).joined.exchange(1) != 0) wrong("shared memory group: rank " + std::to_string(rank) + " has its seat already");
  auto arena = std::make_shared<detail::Arena>(state, fd, rank);
  return std::make_unique<LocalCommunicator>(std::move(state), rank, std::move(arena));
}

}  // namespace troupe
