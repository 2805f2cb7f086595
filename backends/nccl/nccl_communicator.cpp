#include "nccl_communicator.hpp"

#include "../comm/request.hpp"
#include "cuda_device.hpp"

#include <troupe/black_box.hpp>

#include <atomic>
#include <mutex>
#include <numeric>
#include <optional>
#include <thread>
#include <tuple>
#include <utility>

namespace troupe {

namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

ncclDataType_t nccl_type(DType dtype, std::string_view operation) {
  switch (dtype) {
    case DType::F64: return ncclFloat64;
    case DType::F32: return ncclFloat32;
    case DType::F16: return ncclFloat16;
    case DType::BF16: return ncclBfloat16;
    case DType::I64: return ncclInt64;
    case DType::I32: return ncclInt32;
    case DType::I8: return ncclInt8;
    case DType::U8:
    case DType::Bool: return ncclUint8;
    case DType::I16: break;
  }
  throw Failure{Errc::InvalidArgument, std::string(operation) + ": NCCL has no " + std::string(name(dtype))};
}

ncclRedOp_t nccl_op(DType dtype, ReduceOp op) {
  if (dtype == DType::Bool && op == ReduceOp::Sum) return ncclMax;
  switch (op) {
    case ReduceOp::Sum: return ncclSum;
    case ReduceOp::Mean: return ncclAvg;
    case ReduceOp::Max: return ncclMax;
    case ReduceOp::Min: return ncclMin;
  }
  return ncclSum;
}

/// Whether somebody asked for the end of a group, or of one that it was split from. Threads: any.
class AbortRequest {
 public:
  explicit AbortRequest(std::shared_ptr<AbortRequest> parent) : parent_(std::move(parent)) {}
  void make(const std::string& reason) noexcept {
    const std::lock_guard lock{mutex_};
    if (!reason_) reason_ = reason;
    made_.store(true, std::memory_order_release);
  }
  std::optional<std::string> reason() {
    if (made_.load(std::memory_order_acquire)) {
      const std::lock_guard lock{mutex_};
      return reason_;
    }
    return parent_ ? parent_->reason() : std::nullopt;
  }

 private:
  std::shared_ptr<AbortRequest> parent_;
  std::atomic<bool> made_{false};
  std::mutex mutex_;
  std::optional<std::string> reason_;
};

/// One rank's NCCL communicator, its stream, and the first failure, which stays.
class Seat : public std::enable_shared_from_this<Seat> {
 public:
  /// A first group.
  Seat(const NcclTable& nccl, const GpuTable& gpu, const NcclSeat& seat) : nccl_(nccl), gpu_(gpu), seat_(seat) {
    open("ncclCommInitRank", [&](ncclConfig_t& config) {
      return nccl_.CommInitRankConfig(&comm_, seat_.size, seat_.id, seat_.rank, &config);
    });
  }
  /// One split from `parent`.
  Seat(Seat& parent, int color) : nccl_(parent.nccl_), gpu_(parent.gpu_), seat_(parent.seat_), abort_(std::make_shared<AbortRequest>(parent.abort_)) {
    open("ncclCommSplit", [&](ncclConfig_t& config) {
      const auto begun = nccl_.CommSplit(parent.comm_, color, seat_.rank, &comm_, &config);
      parent.settle(begun, "ncclCommSplit", Clock::now() + seat_.timeout).or_throw();
      return ncclInProgress;  // the new one's own state tells
    });
  }
  Seat(const Seat&) = delete;
  Seat& operator=(const Seat&) = delete;
  ~Seat() { close(); }

  const NcclTable& nccl() const noexcept { return nccl_; }
  const GpuTable& gpu() const noexcept { return gpu_; }
  const NcclSeat& options() const noexcept { return seat_; }
  void set_timeout(milliseconds timeout) { seat_.timeout = timeout; }
  ncclComm_t comm() const noexcept { return comm_; }
  cudaStream_t stream() const noexcept { return stream_; }

  void check(cudaError_t code, const char* call) const {
    if (code != cudaSuccess) throw Failure{Errc::Unsupported, where() + call + ": " + gpu_.GetErrorString(code)};
  }

  FlightRecorder& recorder() noexcept { return *recorder_; }

  std::string where() const { return "NCCL rank " + std::to_string(seat_.rank) + " of " + std::to_string(seat_.size) + ": "; }

  void request_abort(const std::string& reason) noexcept { abort_->make(reason); }

  /// The first failure of the group, or success.
  Outcome state() {
    if (failure_) return *failure_;
    if (const auto reason = abort_->reason()) return fail(Errc::Aborted, *reason);
    return {};
  }

  /// Waits until a non-blocking NCCL call has taken effect.
  Outcome settle(ncclResult_t result, std::string_view what, Clock::time_point deadline) {
    while (result == ncclInProgress) {
      if (auto now = state(); !now.ok()) return now;
      if (Clock::now() >= deadline) return fail(Errc::DeadlinePassed, std::string{what} + ": not every rank came within the deadline");
      std::this_thread::sleep_for(std::chrono::microseconds(50));
      if (const auto asked = nccl_.CommGetAsyncError(comm_, &result); asked != ncclSuccess) result = asked;
    }
    if (result != ncclSuccess) return fail(Errc::Internal, std::string{what} + ": " + nccl_.GetErrorString(result));
    return {};
  }

  /// Keeps the first failure and ends the communicator, which frees this rank's kernels.
  Outcome fail(Errc code, const std::string& text) {
    if (!failure_) failure_ = Outcome{code, where() + text};
    if (comm_) {
      (void)nccl_.CommAbort(comm_);
      comm_ = nullptr;
    }
    return *failure_;
  }

 private:
  template <class Begin>
  void open(const char* call, Begin begin) {
    try {
      check(gpu_.SetDevice(seat_.device), "cudaSetDevice");
      check(gpu_.StreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "cudaStreamCreate");
      ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
      config.blocking = 0;
      settle(begin(config), call, Clock::now() + seat_.timeout).or_throw();
      (void)nccl_.CommUserRank(comm_, &seat_.rank);
      (void)nccl_.CommCount(comm_, &seat_.size);
      std::vector<int> ranks(static_cast<std::size_t>(seat_.size));
      std::iota(ranks.begin(), ranks.end(), 0);
      recorder_ = std::make_unique<FlightRecorder>("nccl", seat_.rank, std::move(ranks));
    } catch (...) {
      if (comm_) (void)nccl_.CommAbort(std::exchange(comm_, nullptr));
      close();
      throw;
    }
  }
  void close() noexcept {
    if (comm_) {
      ncclResult_t result = nccl_.CommFinalize(comm_);
      const auto deadline = Clock::now() + milliseconds(1000);
      while (result == ncclInProgress && Clock::now() < deadline) {
        std::this_thread::sleep_for(std::chrono::microseconds(50));
        (void)nccl_.CommGetAsyncError(comm_, &result);
      }
      (void)(result == ncclSuccess ? nccl_.CommDestroy(comm_) : nccl_.CommAbort(comm_));
      comm_ = nullptr;
    }
    if (stream_) (void)gpu_.StreamDestroy(std::exchange(stream_, nullptr));
  }

  NcclTable nccl_;
  GpuTable gpu_;
  NcclSeat seat_;
  ncclComm_t comm_ = nullptr;
  cudaStream_t stream_ = nullptr;
  std::optional<Outcome> failure_;
  std::unique_ptr<FlightRecorder> recorder_;
  std::shared_ptr<AbortRequest> abort_ = std::make_shared<AbortRequest>(nullptr);
};

/// A collective on the stream, finished when its event has passed.
class NcclWork final : public Work::State {
 public:
  NcclWork(std::shared_ptr<Seat> seat, std::uint64_t sequence, const Collective& what, Outcome begun)
      : seat_(std::move(seat)), sequence_(sequence), what_(what), label_(seat_->recorder().label()), deadline_(Clock::now() + seat_->options().timeout) {
    if (!begun.ok()) {
      end(std::move(begun));
      return;
    }
    done_ = std::make_shared<CudaEvent>(seat_->gpu(), seat_->stream());
  }

  bool poll() override {
    if (outcome_) return true;
    if (auto now = seat_->state(); !now.ok()) {
      end(std::move(now));
      return true;
    }
    const auto event = seat_->gpu().EventQuery(done_->native());
    if (event != cudaErrorNotReady) {
      end(event == cudaSuccess ? Outcome{} : seat_->fail(Errc::Internal, text() + ": " + seat_->gpu().GetErrorString(event)));
      return true;
    }
    ncclResult_t error = ncclSuccess;
    (void)seat_->nccl().CommGetAsyncError(seat_->comm(), &error);
    if (error != ncclSuccess && error != ncclInProgress) {
      end(seat_->fail(Errc::Internal, text() + ": " + seat_->nccl().GetErrorString(error)));
    } else if (Clock::now() >= deadline_) {
      end(seat_->fail(Errc::DeadlinePassed,
                      text() + ": a rank did not come within " + std::to_string(seat_->options().timeout.count()) + " ms"));
    }
    return outcome_.has_value();
  }

  Outcome wait() override {
    if (poll()) return *outcome_;
    const WaitMark mark{WaitingIn::Collective};
    while (!poll()) std::this_thread::sleep_for(std::chrono::microseconds(20));
    return *outcome_;
  }
  std::shared_ptr<const Event> event() override { return done_; }

 private:
  std::string text() const { return describe(what_, sequence_, label_); }
  void end(Outcome outcome) {
    seat_->recorder().finish(sequence_, outcome.code(), Clock::now());
    outcome_ = std::move(outcome);
  }

  std::shared_ptr<Seat> seat_;
  std::uint64_t sequence_;
  Collective what_;
  CollectiveLabel label_;
  Clock::time_point deadline_;
  std::shared_ptr<const CudaEvent> done_;
  std::optional<Outcome> outcome_;
};

class NcclCommunicator final : public detail::RequestCommunicator {
 public:
  explicit NcclCommunicator(std::shared_ptr<Seat> seat) : seat_(std::move(seat)), barrier_memory_(allocate(sizeof(int))) {}

  int rank() const noexcept override { return seat_->options().rank; }
  int size() const noexcept override { return seat_->options().size; }
  std::string name() const override { return "nccl"; }
  bool reaches_any_memory() const noexcept override { return true; }
  bool widens() const noexcept override { return false; }

  std::unique_ptr<Communicator> split(int color) override {
    if (color < 0) throw Failure{Errc::InvalidArgument, "split: a color is 0 or more, not " + std::to_string(color)};
    seat_->state().or_throw();
    return std::make_unique<NcclCommunicator>(std::make_shared<Seat>(*seat_, color));
  }
  void abort(const std::string& reason) noexcept override { seat_->request_abort(reason); }
  std::shared_ptr<void> allocate(std::size_t bytes) override {
    auto memory = cuda_memory(seat_->gpu(), bytes);
    seat_->check(seat_->gpu().Memset(memory.get(), 0, bytes), "cudaMemset");
    return memory;
  }
  void set_timeout(milliseconds timeout) override { seat_->set_timeout(timeout); }
  FlightRecorder& recorder() noexcept override { return seat_->recorder(); }

 protected:
  /// Runs the collective on the communication stream, after what the compute stream has queued.
  Work post(const detail::Request& request) override {
    if (detail::widens(request))
      throw Failure{Errc::Unsupported, "reduce_scatter: NCCL does not widen " + std::string{name_of(request)} + "; give it F32"};
    // Bits that are only moved need no type.
    const bool moved = request.call == detail::Call::AllGather || request.call == detail::Call::Broadcast;
    const auto type = moved ? ncclUint8 : nccl_type(request.dtype(), troupe::name(request.call));
    const auto now = Clock::now();
    const auto sequence = seat_->recorder().post(request.collective(), now);
    auto outcome = seat_->state();
    if (outcome.ok()) {
      wait_for_compute();
      outcome = seat_->settle(run(request, type), troupe::name(request.call), now + seat_->options().timeout);
    }
    return Work{std::make_shared<NcclWork>(seat_, sequence, request.collective(), std::move(outcome))};
  }

 private:
  static std::string_view name_of(const detail::Request& request) { return troupe::name(request.dtype()); }

  ncclResult_t run_reduce_to_owners(const detail::Request& request, ncclDataType_t type, ncclRedOp_t op) {
    const auto& nccl = seat_->nccl();
    if (const auto begun = nccl.GroupStart(); begun != ncclSuccess) return begun;
    ncclResult_t result = ncclSuccess;
    for (int owner = 0; owner < size() && (result == ncclSuccess || result == ncclInProgress); ++owner) {
      const auto r = static_cast<std::size_t>(owner);
      const auto* from = static_cast<const std::byte*>(request.input.data) + request.begins[r] * size_of(request.dtype());
      result = nccl.Reduce(from, request.output.data, request.begins[r + 1] - request.begins[r], type, op, owner, seat_->comm(), seat_->stream());
    }
    const auto ended = nccl.GroupEnd();
    return result == ncclSuccess || result == ncclInProgress ? ended : result;
  }

  ncclResult_t run(const detail::Request& request, ncclDataType_t type) {
    const auto& [nccl, in, out] = std::tie(seat_->nccl(), request.input, request.output);
    const auto op = nccl_op(request.dtype(), request.op);
    switch (request.call) {
      case detail::Call::AllReduce: return nccl.AllReduce(out.data, out.data, out.count(), type, op, seat_->comm(), seat_->stream());
      case detail::Call::ReduceScatter:
        return nccl.ReduceScatter(in.data, out.data, out.count(), type, op, seat_->comm(), seat_->stream());
      case detail::Call::ReduceToOwners: return run_reduce_to_owners(request, type, op);
      case detail::Call::AllGather: return nccl.AllGather(in.data, out.data, in.bytes, type, seat_->comm(), seat_->stream());
      case detail::Call::Broadcast:
        return nccl.Broadcast(out.data, out.data, out.bytes, type, request.root, seat_->comm(), seat_->stream());
      case detail::Call::Barrier: break;
    }
    return nccl.AllReduce(barrier_memory_.get(), barrier_memory_.get(), 1, ncclInt32, ncclSum, seat_->comm(), seat_->stream());
  }

  void wait_for_compute() {
    const CudaEvent ready{seat_->gpu(), seat_->options().compute_stream};
    seat_->check(seat_->gpu().StreamWaitEvent(seat_->stream(), ready.native(), 0), "cudaStreamWaitEvent");
  }

  std::shared_ptr<Seat> seat_;
  std::shared_ptr<void> barrier_memory_;
};

}  // namespace

std::unique_ptr<Communicator> make_nccl_communicator(const NcclTable& nccl, const GpuTable& gpu, const NcclSeat& seat) {
  if (seat.size < 1 || seat.rank < 0 || seat.rank >= seat.size) {
    throw Failure{Errc::InvalidArgument, "rank " + std::to_string(seat.rank) + " does not fit a group of " + std::to_string(seat.size)};
  }
  return std::make_unique<NcclCommunicator>(std::make_shared<Seat>(nccl, gpu, seat));
}

}  // namespace troupe
