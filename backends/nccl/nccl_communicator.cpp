#include "nccl_communicator.hpp"

#include <atomic>
#include <mutex>
#include <optional>
#include <thread>
#include <utility>

namespace troupe {

namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

ncclDataType_t nccl_type(DType dtype, const char* operation) {
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

ncclRedOp_t nccl_op(ReduceOp op) {
  switch (op) {
    case ReduceOp::Sum: return ncclSum;
    case ReduceOp::Mean: return ncclAvg;
    case ReduceOp::Max: return ncclMax;
    case ReduceOp::Min: return ncclMin;
  }
  return ncclSum;
}

/// One rank's NCCL communicator, its stream, and the first failure, which stays.
class Seat : public std::enable_shared_from_this<Seat> {
 public:
  Seat(const NcclTable& nccl, const GpuTable& gpu, const NcclSeat& seat) : nccl_(nccl), gpu_(gpu), seat_(seat) {
    check(gpu_.SetDevice(seat_.device), "cudaSetDevice");
    check(gpu_.StreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "cudaStreamCreate");
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    config.blocking = 0;
    const auto begun = nccl_.CommInitRankConfig(&comm_, seat_.size, seat_.id, seat_.rank, &config);
    auto outcome = settle(begun, "ncclCommInitRank", Clock::now() + seat_.timeout);
    if (!outcome.ok()) {
      close();
      outcome.or_throw();
    }
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

  std::string where() const { return "NCCL rank " + std::to_string(seat_.rank) + " of " + std::to_string(seat_.size) + ": "; }

  void request_abort(const std::string& reason) noexcept {
    const std::lock_guard lock{mutex_};
    if (!abort_reason_) abort_reason_ = reason;
    abort_requested_.store(true, std::memory_order_release);
  }

  /// The first failure of the group, or success.
  Outcome state() {
    if (failure_) return *failure_;
    if (abort_requested_.load(std::memory_order_acquire)) {
      const std::lock_guard lock{mutex_};
      return fail(Errc::Aborted, *abort_reason_);
    }
    return {};
  }

  /// Waits until a non-blocking NCCL call has taken effect.
  Outcome settle(ncclResult_t result, const std::string& call, Clock::time_point deadline) {
    while (result == ncclInProgress) {
      if (auto now = state(); !now.ok()) return now;
      if (Clock::now() >= deadline) return fail(Errc::DeadlinePassed, call + ": not every rank came within the deadline");
      std::this_thread::sleep_for(std::chrono::microseconds(50));
      if (const auto asked = nccl_.CommGetAsyncError(comm_, &result); asked != ncclSuccess) result = asked;
    }
    if (result != ncclSuccess) return fail(Errc::Internal, call + ": " + nccl_.GetErrorString(result));
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
  std::atomic<bool> abort_requested_{false};
  std::mutex mutex_;
  std::optional<std::string> abort_reason_;
};

/// A collective on the stream, finished when its event has passed.
class NcclWork final : public Work::State {
 public:
  NcclWork(std::shared_ptr<Seat> seat, std::string call, Outcome begun)
      : seat_(std::move(seat)), call_(std::move(call)), deadline_(Clock::now() + seat_->options().timeout) {
    if (!begun.ok()) {
      outcome_ = std::move(begun);
      return;
    }
    seat_->check(seat_->gpu().EventCreateWithFlags(&done_, cudaEventDisableTiming), "cudaEventCreate");
    seat_->check(seat_->gpu().EventRecord(done_, seat_->stream()), "cudaEventRecord");
  }
  ~NcclWork() override {
    if (done_) (void)seat_->gpu().EventDestroy(done_);
  }

  bool poll() override {
    if (outcome_) return true;
    if (auto now = seat_->state(); !now.ok()) {
      outcome_ = std::move(now);
      return true;
    }
    const auto event = seat_->gpu().EventQuery(done_);
    if (event == cudaSuccess) {
      outcome_ = Outcome{};
      return true;
    }
    if (event != cudaErrorNotReady) {
      outcome_ = seat_->fail(Errc::Internal, call_ + ": " + seat_->gpu().GetErrorString(event));
      return true;
    }
    ncclResult_t error = ncclSuccess;
    (void)seat_->nccl().CommGetAsyncError(seat_->comm(), &error);
    if (error != ncclSuccess && error != ncclInProgress) {
      outcome_ = seat_->fail(Errc::Internal, call_ + ": " + seat_->nccl().GetErrorString(error));
    } else if (Clock::now() >= deadline_) {
      outcome_ = seat_->fail(Errc::DeadlinePassed, call_ + ": a rank did not come within " +
                                                       std::to_string(seat_->options().timeout.count()) + " ms");
    }
    return outcome_.has_value();
  }

  Outcome wait() override {
    while (!poll()) std::this_thread::sleep_for(std::chrono::microseconds(20));
    return *outcome_;
  }

 private:
  std::shared_ptr<Seat> seat_;
  std::string call_;
  Clock::time_point deadline_;
  cudaEvent_t done_ = nullptr;
  std::optional<Outcome> outcome_;
};

class NcclCommunicator final : public Communicator {
 public:
  NcclCommunicator(const NcclTable& nccl, const GpuTable& gpu, const NcclSeat& seat)
      : seat_(std::make_shared<Seat>(nccl, gpu, seat)), barrier_memory_(allocate(sizeof(int))) {}

  int rank() const noexcept override { return seat_->options().rank; }
  int size() const noexcept override { return seat_->options().size; }
  std::string name() const override { return "nccl"; }

  Work all_reduce(Buffer buffer, ReduceOp op) override {
    const auto type = nccl_type(buffer.dtype, "all_reduce");
    return launch("all_reduce", [&] {
      return seat_->nccl().AllReduce(buffer.data, buffer.data, buffer.count(), type, nccl_op(op), seat_->comm(), seat_->stream());
    });
  }

  Work reduce_scatter(ConstBuffer input, Buffer output, ReduceOp op) override {
    const auto type = nccl_type(input.dtype, "reduce_scatter");
    parts("reduce_scatter", input, output);
    return launch("reduce_scatter", [&] {
      return seat_->nccl().ReduceScatter(input.data, output.data, output.count(), type, nccl_op(op), seat_->comm(), seat_->stream());
    });
  }

  Work all_gather(ConstBuffer input, Buffer output) override {
    const auto type = nccl_type(input.dtype, "all_gather");
    parts("all_gather", output, input);
    return launch("all_gather", [&] {
      return seat_->nccl().AllGather(input.data, output.data, input.count(), type, seat_->comm(), seat_->stream());
    });
  }

  Work broadcast(Buffer buffer, int root) override {
    if (root < 0 || root >= size()) {
      throw Failure{Errc::InvalidArgument, "broadcast: there is no rank " + std::to_string(root) + " among " + std::to_string(size())};
    }
    const auto type = nccl_type(buffer.dtype, "broadcast");
    return launch("broadcast", [&] {
      return seat_->nccl().Broadcast(buffer.data, buffer.data, buffer.count(), type, root, seat_->comm(), seat_->stream());
    });
  }

  Work barrier() override { return all_reduce({barrier_memory_.get(), sizeof(int), DType::I32}, ReduceOp::Sum); }

  void abort(const std::string& reason) noexcept override { seat_->request_abort(reason); }

  std::shared_ptr<void> allocate(std::size_t bytes) override {
    void* memory = nullptr;
    seat_->check(seat_->gpu().Malloc(&memory, bytes ? bytes : 1), "cudaMalloc");
    std::shared_ptr<void> owned{memory, [seat = seat_](void* p) { (void)seat->gpu().Free(p); }};
    seat_->check(seat_->gpu().Memset(memory, 0, bytes), "cudaMemset");
    return owned;
  }

  void set_timeout(milliseconds timeout) override { seat_->set_timeout(timeout); }

 private:
  void parts(const char* call, ConstBuffer whole, ConstBuffer part) const {
    if (whole.dtype != part.dtype || whole.bytes != part.bytes * static_cast<std::size_t>(size())) {
      throw Failure{Errc::InvalidArgument, std::string(call) + ": " + std::to_string(whole.bytes) + " bytes are not " + std::to_string(size()) +
                                               " parts of " + std::to_string(part.bytes)};
    }
  }

  /// Runs one collective on the communication stream, after what the compute stream has queued.
  template <class Call>
  Work launch(const char* call, Call run) {
    const auto text = std::string(call) + " #" + std::to_string(++sequence_);
    auto outcome = seat_->state();
    if (outcome.ok()) {
      wait_for_compute();
      outcome = seat_->settle(run(), text, Clock::now() + seat_->options().timeout);
    }
    return Work{std::make_shared<NcclWork>(seat_, text, std::move(outcome))};
  }

  void wait_for_compute() {
    cudaEvent_t ready = nullptr;
    seat_->check(seat_->gpu().EventCreateWithFlags(&ready, cudaEventDisableTiming), "cudaEventCreate");
    seat_->check(seat_->gpu().EventRecord(ready, seat_->options().compute_stream), "cudaEventRecord");
    seat_->check(seat_->gpu().StreamWaitEvent(seat_->stream(), ready, 0), "cudaStreamWaitEvent");
    (void)seat_->gpu().EventDestroy(ready);
  }

  std::shared_ptr<Seat> seat_;
  std::shared_ptr<void> barrier_memory_;
  std::uint64_t sequence_ = 0;
};

}  // namespace

std::unique_ptr<Communicator> make_nccl_communicator(const NcclTable& nccl, const GpuTable& gpu, const NcclSeat& seat) {
  if (seat.size < 1 || seat.rank < 0 || seat.rank >= seat.size) {
    throw Failure{Errc::InvalidArgument, "rank " + std::to_string(seat.rank) + " does not fit a group of " + std::to_string(seat.size)};
  }
  return std::make_unique<NcclCommunicator>(nccl, gpu, seat);
}

}  // namespace troupe
