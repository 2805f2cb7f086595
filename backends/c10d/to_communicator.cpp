#include "to_communicator.hpp"

#include "../comm/blame.hpp"
#include "../comm/kernels.hpp"

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/csrc/distributed/c10d/Backend.hpp>

#include <cstring>
#include <deque>
#include <new>
#include <thread>

namespace troupe {

namespace detail {

namespace {

using Clock = std::chrono::steady_clock;
/// How often a waiting rank looks whether the group has ended.
constexpr std::chrono::milliseconds kLook{5};

at::ScalarType scalar_type(DType dtype) {
  constexpr at::ScalarType types[] = {at::kDouble, at::kFloat, at::kHalf, at::kBFloat16, at::kLong,
                                      at::kInt,    at::kShort, at::kChar, at::kByte,     at::kByte};
  return types[static_cast<std::size_t>(dtype)];
}

c10d::ReduceOp reduce_op(DType dtype, ReduceOp op) {
  if (op == ReduceOp::Max || (dtype == DType::Bool && op == ReduceOp::Sum)) return c10d::ReduceOp::MAX;
  return op == ReduceOp::Min ? c10d::ReduceOp::MIN : c10d::ReduceOp::SUM;
}

at::Tensor empty(std::size_t bytes, DType dtype) {
  return at::empty({static_cast<std::int64_t>(bytes / size_of(dtype))}, at::TensorOptions{}.dtype(scalar_type(dtype)));
}

at::Tensor copy_of(ConstBuffer buffer, DType as) {
  auto tensor = empty(buffer.bytes, as);
  if (buffer.bytes != 0) std::memcpy(tensor.mutable_data_ptr(), buffer.data, buffer.bytes);
  return tensor;
}

[[noreturn]] void wrong(const std::string& text) { throw Failure{Errc::InvalidArgument, text}; }

struct Group {
  explicit Group(C10dParts p) : parts(std::move(p)), rank(parts.backend->getRank()), size(parts.backend->getSize()) {}
  Group(const Group&) = delete;
  Group& operator=(const Group&) = delete;
  ~Group() {
    // What is under way in a backend that was cut off ends only at the backend's own limit, and its destructor would
    // wait for that: it is left to the end of the process instead.
    if (closed && parts.close) (void)parts.backend.release();
  }
  C10dParts parts;
  int rank, size;
  std::uint64_t sequence = 0;
  bool closed = false;
  [[nodiscard]] bool together() const { return parts.board->size() == size; }

  /// Once the group is broken, what is under way must end too.
  Outcome broken() {
    if (!std::exchange(closed, true) && parts.close) parts.close();
    return parts.board->failure();
  }
};

/// One collective: c10d's work on tensors of ours, and where its result goes.
class C10dState final : public Work::State {
 public:
  C10dState(std::shared_ptr<Group> group, Awaited awaited, Buffer output, bool mean)
      : group_(std::move(group)), awaited_(awaited), output_(output), mean_(mean) {}
  ~C10dState() override = default;

  std::vector<at::Tensor> in, out;             ///< kept until c10d is done with them
  std::size_t result_offset = 0;               ///< of the caller's part in out[0], bytes
  c10::intrusive_ptr<c10d::Work> work;

  void fail(Outcome outcome) {
    outcome_ = std::move(outcome);
    finished_ = true;
  }
  bool poll() override {
    if (finished_) return true;
    if (group_->parts.board->is_broken() || work->isCompleted()) (void)wait();
    return finished_;
  }
  Outcome wait() override {
    while (!finished_) {
      try {
        work->wait(kLook);
        deliver();
      } catch (const std::exception& error) {
        look(error);
      }
    }
    return outcome_;
  }

 private:
  void look(const std::exception& error) {
    auto& board = *group_->parts.board;
    if (!board.is_broken() && work->isCompleted()) {
      if (work->isSuccess()) return deliver();  // just after the look at it timed out
      // A lost connection is news here before its cause is known: let the one who ended the group speak first.
      for (int i = 0; i < 10 && !board.is_broken(); ++i) std::this_thread::sleep_for(kLook);
      const std::string text = error.what();
      board.fail(Errc::Aborted, std::string{name(awaited_.call)} + " #" + std::to_string(awaited_.sequence) + " failed in " +
                                    group_->parts.name + ": " + text.substr(0, text.find('\n')));
    }
    if (!board.is_broken() && group_->together()) end_when_nobody_comes(board, group_->rank, awaited_);
    if (!board.is_broken() && Clock::now() > awaited_.deadline)
      board.fail(Errc::DeadlinePassed, std::string{name(awaited_.call)} + " #" + std::to_string(awaited_.sequence) +
                                           " was not finished in time (" + group_->parts.name + " does not say who did not come)");
    if (board.is_broken()) fail(group_->broken());
  }

  void deliver() {
    if (output_.bytes != 0 && !out.empty()) {
      auto* from = static_cast<std::byte*>(out[0].mutable_data_ptr()) + result_offset;
      if (mean_) out[0].div_(group_->size);
      std::memcpy(output_.data, from, output_.bytes);
    }
    finished_ = true;
    in.clear();
    out.clear();
  }

  std::shared_ptr<Group> group_;
  Awaited awaited_;
  Buffer output_;
  bool mean_;
  bool finished_ = false;
  Outcome outcome_;
};

class C10dCommunicator final : public Communicator {
 public:
  explicit C10dCommunicator(C10dParts parts) : group_(std::make_shared<Group>(std::move(parts))), timeout_(group_->parts.timeout) {}
  ~C10dCommunicator() override {
    auto& board = *group_->parts.board;
    if (board.is_broken()) (void)group_->broken();
    if (!group_->together()) return;
    board.rank(rank()).left.store(1, std::memory_order_release);
    board.header().num_left.fetch_add(1, std::memory_order_seq_cst);
  }

  int rank() const noexcept override { return group_->rank; }
  int size() const noexcept override { return group_->size; }
  std::string name() const override { return group_->parts.name; }

  Work all_reduce(Buffer buffer, ReduceOp op) override {
    check("all_reduce", buffer);
    check_reducible(buffer.dtype, op);
    return post({Call::AllReduce, op, buffer.dtype, 0, buffer.bytes}, buffer, op == ReduceOp::Mean, [&](C10dState& s) {
      s.out = {copy_of(buffer, buffer.dtype)};
      c10d::AllreduceOptions options;
      options.reduceOp = reduce_op(buffer.dtype, op);
      return backend().allreduce(s.out, options);
    });
  }
  Work reduce_scatter(ConstBuffer input, Buffer output, ReduceOp op) override {
    check("reduce_scatter", input);
    check("reduce_scatter", output);
    check_parts("reduce_scatter", input, output);
    check_reducible(input.dtype, op);
    // Backends differ in which reductions their reduce_scatter knows; all know them in all_reduce.
    return post({Call::ReduceScatter, op, input.dtype, 0, input.bytes}, output, op == ReduceOp::Mean, [&](C10dState& s) {
      s.in = {copy_of(input, input.dtype)};
      if (reduce_op(input.dtype, op) == c10d::ReduceOp::SUM) {
        s.out = {empty(output.bytes, output.dtype)};
        return backend()._reduce_scatter_base(s.out[0], s.in[0]);
      }
      s.out = s.in;
      s.result_offset = output.bytes * static_cast<std::size_t>(rank());
      c10d::AllreduceOptions options;
      options.reduceOp = reduce_op(input.dtype, op);
      return backend().allreduce(s.out, options);
    });
  }
  Work all_gather(ConstBuffer input, Buffer output) override {
    check("all_gather", input);
    check("all_gather", output);
    check_parts("all_gather", output, input);
    return post({Call::AllGather, ReduceOp::Sum, input.dtype, 0, input.bytes}, output, false, [&](C10dState& s) {
      s.in = {copy_of(input, DType::U8)};
      s.out = {empty(output.bytes, DType::U8)};
      return backend()._allgather_base(s.out[0], s.in[0]);
    });
  }
  Work broadcast(Buffer buffer, int root) override {
    check("broadcast", buffer);
    if (root < 0 || root >= size()) wrong("broadcast: no rank " + std::to_string(root) + " in a group of " + std::to_string(size()));
    return post({Call::Broadcast, ReduceOp::Sum, buffer.dtype, root, buffer.bytes}, buffer, false, [&](C10dState& s) {
      s.out = {copy_of(buffer, DType::U8)};
      c10d::BroadcastOptions options;
      options.rootRank = root;
      return backend().broadcast(s.out, options);
    });
  }
  Work barrier() override {
    return post({Call::Barrier, ReduceOp::Sum, DType::U8, 0, 0}, {}, false, [](C10dState&) { return c10::intrusive_ptr<c10d::Work>{}; });
  }
  void abort(const std::string& reason) noexcept override { group_->parts.board->fail(Errc::Aborted, reason); }
  std::shared_ptr<void> allocate(std::size_t bytes) override {
    const std::align_val_t alignment{64};
    void* memory = ::operator new(bytes, alignment);
    std::memset(memory, 0, bytes);
    return {memory, [alignment](void* p) { ::operator delete(p, alignment); }};
  }
  void set_timeout(std::chrono::milliseconds timeout) override { timeout_ = timeout; }

 private:
  struct Said {
    Call call;
    ReduceOp op;
    DType dtype;
    int root;
    std::size_t bytes;
  };

  c10d::Backend& backend() { return *group_->parts.backend; }

  static void check(const char* call, ConstBuffer buffer) {
    if (buffer.bytes % size_of(buffer.dtype) != 0) wrong(std::string{call} + ": no whole number of elements");
    if (buffer.bytes != 0 && buffer.data == nullptr) wrong(std::string{call} + ": no memory given");
  }
  void check_parts(const char* call, ConstBuffer whole, ConstBuffer part) const {
    if (whole.dtype != part.dtype || whole.bytes != part.bytes * static_cast<std::size_t>(size()))
      wrong(std::string{call} + ": the whole must be " + std::to_string(size()) + " parts of one type");
  }

  template <class F>
  Work post(const Said& said, Buffer output, bool mean, F&& start) {
    auto& board = *group_->parts.board;
    const auto sequence = ++group_->sequence;
    const Awaited awaited{said.call, sequence, Clock::now() + timeout_, timeout_};
    auto state = std::make_shared<C10dState>(group_, awaited, output, mean);
    if (group_->together()) tell(said, awaited);
    if (board.is_broken()) {
      state->fail(group_->broken());
      return Work{std::move(state)};
    }
    try {
      if (said.bytes != 0) state->work = start(*state);
      else state->work = backend().barrier();
    } catch (const std::exception& error) {
      board.fail(Errc::Unsupported, std::string{detail::name(said.call)} + " #" + std::to_string(sequence) + " cannot start in " +
                                        group_->parts.name + ": " + std::string{error.what()}.substr(0, 200));
      state->fail(group_->broken());
    }
    return Work{std::move(state)};
  }

  /// Puts on the board what this rank calls; the last rank to come compares.
  void tell(const Said& said, const Awaited& awaited) {
    auto& board = *group_->parts.board;
    auto& slot = board.slot(awaited.sequence);
    const auto ranks = static_cast<std::uint64_t>(size());
    const auto round = (awaited.sequence - 1) / kSlots;
    while (slot.posted.load(std::memory_order_acquire) < round * ranks && !board.is_broken()) {  // 64 calls behind us
      end_when_nobody_comes(board, rank(), {awaited.call, awaited.sequence - kSlots, awaited.deadline, awaited.timeout});
      std::this_thread::sleep_for(kLook);
    }
    if (board.is_broken()) return;
    auto& record = board.record(awaited.sequence, rank());
    record.call = said.call;
    record.op = said.op;
    record.dtype = said.dtype;
    record.root = said.root;
    record.bytes = said.bytes;
    record.sequence.store(awaited.sequence, std::memory_order_release);
    if (slot.posted.fetch_add(1, std::memory_order_acq_rel) + 1 == (round + 1) * ranks) (void)agree(board, awaited.sequence);
  }

  std::shared_ptr<Group> group_;
  std::chrono::milliseconds timeout_;
};

}  // namespace

std::unique_ptr<Communicator> make_c10d_communicator(C10dParts parts) { return std::make_unique<C10dCommunicator>(std::move(parts)); }

}  // namespace detail

std::unique_ptr<Communicator> as_communicator(c10::intrusive_ptr<c10d::Backend> backend, std::string name,
                                              std::chrono::milliseconds timeout) {
  return detail::make_c10d_communicator({.backend = std::move(backend),
                                         .name = std::move(name),
                                         .timeout = timeout,
                                         .board = detail::SharedState::of_threads(1, timeout),
                                         .close = {}});
}

}  // namespace troupe
