#include "to_communicator.hpp"

#include "../comm/blame.hpp"
#include "../comm/request.hpp"

#include <troupe/black_box.hpp>

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/csrc/distributed/c10d/Backend.hpp>

#include <cstring>
#include <numeric>
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

struct Group {
  explicit Group(C10dParts p)
      : parts(std::move(p)), rank(parts.backend->getRank()), size(parts.backend->getSize()), recorder(parts.name, rank, ranks()) {}
  Group(const Group&) = delete;
  Group& operator=(const Group&) = delete;
  ~Group() {
    // What is under way in a backend that was cut off ends only at the backend's own limit, and its destructor would
    // wait for that: it is left to the end of the process instead.
    if (closed && parts.close) (void)parts.backend.release();
  }
  C10dParts parts;
  int rank, size;
  FlightRecorder recorder;
  bool closed = false;
  [[nodiscard]] bool together() const { return parts.board->size() == size; }
  [[nodiscard]] std::vector<int> ranks() const {
    if (together()) return parts.board->members();
    std::vector<int> all(static_cast<std::size_t>(size));
    std::iota(all.begin(), all.end(), 0);
    return all;
  }
  void finish(std::uint64_t sequence, Errc outcome) {
    const auto now = Clock::now();
    recorder.finish(sequence, outcome, now);
    if (together()) parts.board->note_finished(rank, sequence, now);
  }

  /// Once the group is broken, what is under way must end too.
  Outcome broken() {
    if (!std::exchange(closed, true) && parts.close) parts.close();
    return parts.board->failure();
  }
};

/// One collective: c10d's work on tensors of ours, and where its result goes.
class C10dState final : public Work::State {
 public:
  C10dState(std::shared_ptr<Group> group, const Request& request, Awaited awaited)
      : group_(std::move(group)),
        awaited_(awaited),
        what_(request.collective()),
        label_(group_->recorder.label()),
        output_(request.output),
        mean_(request.op == ReduceOp::Mean && request.reduces()) {}
  ~C10dState() override = default;

  std::vector<at::Tensor> in, out;             ///< kept until c10d is done with them
  std::size_t result_offset = 0;               ///< of the caller's part in out[0], bytes
  c10::intrusive_ptr<c10d::Work> work;

  [[nodiscard]] std::string text() const { return describe(what_, awaited_.sequence, label_); }
  void fail(Outcome outcome) {
    outcome_ = std::move(outcome);
    finished_ = true;
    group_->finish(awaited_.sequence, outcome_.code());
  }
  bool poll() override {
    if (finished_) return true;
    if (group_->parts.board->is_broken() || work->isCompleted()) (void)wait();
    return finished_;
  }
  Outcome wait() override {
    if (finished_) return outcome_;
    const WaitMark mark{WaitingIn::Collective};
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
      const std::string why = error.what();
      board.fail(Errc::Aborted, text() + " failed in " + group_->parts.name + ": " + why.substr(0, why.find('\n')));
    }
    if (!board.is_broken() && group_->together()) end_when_nobody_comes(board, group_->rank, awaited_);
    if (!board.is_broken() && Clock::now() > awaited_.deadline)
      board.fail(Errc::DeadlinePassed,
                 text() + " was not finished in time (" + group_->parts.name + " does not say who did not come)");
    if (board.is_broken()) fail(group_->broken());
  }

  void deliver() {
    if (output_.bytes != 0 && !out.empty()) {
      auto* from = static_cast<std::byte*>(out[0].mutable_data_ptr()) + result_offset;
      if (mean_) out[0].div_(group_->size);
      std::memcpy(output_.data, from, output_.bytes);
    }
    finished_ = true;
    group_->finish(awaited_.sequence, Errc::Ok);
    in.clear();
    out.clear();
  }

  std::shared_ptr<Group> group_;
  Awaited awaited_;
  Collective what_;
  CollectiveLabel label_;
  Buffer output_;
  bool mean_;
  bool finished_ = false;
  Outcome outcome_;
};

class C10dCommunicator final : public RequestCommunicator {
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
  bool reaches_any_memory() const noexcept override { return true; }

  std::unique_ptr<Communicator> split(int color) override {
    if (!group_->parts.split) throw Failure{Errc::Unsupported, "split: " + group_->parts.name + " has no way to make a new group"};
    const auto place = new_seat(exchange_colors(*this, color), rank());
    const auto key = std::to_string(group_->recorder.sequence()) + "-" + std::to_string(color);
    auto made = group_->parts.split(key, place.rank, place.members, timeout_);
    barrier().wait().or_throw();  // from here on a rank of the new group that goes is one that left
    return made;
  }
  void abort(const std::string& reason) noexcept override { group_->parts.board->fail(Errc::Aborted, reason); }
  std::shared_ptr<void> allocate(std::size_t bytes) override { return allocate_from_heap(bytes); }
  void set_timeout(std::chrono::milliseconds timeout) override { timeout_ = timeout; }
  FlightRecorder& recorder() noexcept override { return group_->recorder; }

 protected:
  Work post(const Request& request) override {
    auto& board = *group_->parts.board;
    const auto now = Clock::now();
    const Awaited awaited{group_->recorder.post(request.collective(), now), now + timeout_, timeout_};
    auto state = std::make_shared<C10dState>(group_, request, awaited);
    if (group_->together()) tell(request, awaited);
    if (board.is_broken()) {
      state->fail(group_->broken());
      return Work{std::move(state)};
    }
    try {
      state->work = start(*state, request);
    } catch (const std::exception& error) {
      board.fail(Errc::Unsupported, state->text() + " cannot start in " + group_->parts.name + ": " +
                                        std::string{error.what()}.substr(0, 200));
      state->fail(group_->broken());
    }
    return Work{std::move(state)};
  }

 private:
  c10d::Backend& backend() { return *group_->parts.backend; }

  c10::intrusive_ptr<c10d::Work> start(C10dState& state, const Request& request) {
    if (request.bytes() == 0) return backend().barrier();
    switch (request.call) {
      case Call::AllReduce: return start_all_reduce(state, request);
      case Call::ReduceScatter: return start_reduce_scatter(state, request);
      case Call::ReduceToOwners:  // backends have parts of one size only
        state.out = {widened_copy(request)};
        state.result_offset = request.begins[static_cast<std::size_t>(rank())] * size_of(request.output.dtype);
        return start_all_reduce(state, request);
      case Call::AllGather:
        state.in = {copy_of(request.input, DType::U8)};
        state.out = {empty(request.output.bytes, DType::U8)};
        return backend()._allgather_base(state.out[0], state.in[0]);
      case Call::Broadcast: {
        state.out = {copy_of(request.output, DType::U8)};
        c10d::BroadcastOptions options;
        options.rootRank = request.root;
        return backend().broadcast(state.out, options);
      }
      case Call::Barrier: break;
    }
    return backend().barrier();
  }
  c10::intrusive_ptr<c10d::Work> start_all_reduce(C10dState& state, const Request& request) {
    if (state.out.empty()) state.out = {copy_of(request.output, request.output.dtype)};
    c10d::AllreduceOptions options;
    options.reduceOp = reduce_op(request.dtype(), request.op);
    return backend().allreduce(state.out, options);
  }
  static at::Tensor widened_copy(const Request& request) {
    const auto input = copy_of(request.input, request.input.dtype);
    return detail::widens(request) ? input.to(at::kFloat) : input;
  }
  c10::intrusive_ptr<c10d::Work> start_reduce_scatter(C10dState& state, const Request& request) {
    auto input = widened_copy(request);
    // Backends differ in which reductions their reduce_scatter knows; all know them in all_reduce.
    if (reduce_op(request.dtype(), request.op) != c10d::ReduceOp::SUM) {
      state.out = {input};
      state.result_offset = request.output.bytes * static_cast<std::size_t>(rank());
      return start_all_reduce(state, request);
    }
    state.in = {input};
    state.out = {empty(request.output.bytes, request.output.dtype)};
    return backend()._reduce_scatter_base(state.out[0], state.in[0]);
  }

  /// Puts on the board what this rank calls; the last rank to come compares.
  void tell(const Request& request, const Awaited& awaited) {
    auto& board = *group_->parts.board;
    auto& slot = board.slot(awaited.sequence);
    const auto ranks = static_cast<std::uint64_t>(size());
    const auto round = (awaited.sequence - 1) / kSlots;
    while (slot.posted.load(std::memory_order_acquire) < round * ranks && !board.is_broken()) {  // 64 calls behind us
      end_when_nobody_comes(board, rank(), {awaited.sequence - kSlots, awaited.deadline, awaited.timeout});
      std::this_thread::sleep_for(kLook);
    }
    if (board.is_broken()) return;
    board.say(rank(), {awaited.sequence, request.collective(), group_->recorder.label()});
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
                                         .close = {},
                                         .split = {}});
}

}  // namespace troupe
