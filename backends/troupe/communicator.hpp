#pragma once

#include <troupe/buffer.hpp>
#include <troupe/device.hpp>
#include <troupe/errors.hpp>
#include <troupe/flight_recorder.hpp>

#include <chrono>
#include <cstddef>
#include <memory>
#include <span>
#include <string>

namespace troupe {

/// A collective under way. Movable; destroying an unfinished one waits for it.
class Work {
 public:
  /// What an implementation provides.
  class State {
   public:
    virtual ~State() = default;
    /// Does what can be done without blocking; true when the collective is finished (well or badly).
    virtual bool poll() = 0;
    /// Blocks until finished, aborted or past the deadline. Afterwards always returns the same outcome.
    virtual Outcome wait() = 0;
    virtual std::shared_ptr<const Event> event() { return nullptr; }
  };

  Work() = default;
  explicit Work(std::shared_ptr<State> state) : state_(std::move(state)) {}
  Work(Work&&) noexcept = default;
  Work& operator=(Work&& other) noexcept {
    finish();
    state_ = std::move(other.state_);
    return *this;
  }
  ~Work() { finish(); }

  [[nodiscard]] bool poll() { return !state_ || state_->poll(); }
  /// The failure names the ranks that did not come and what they did last (DeadlinePassed), each rank's call
  /// (CollectiveMismatch) or the reason given to `abort` (Aborted).
  Outcome wait() { return state_ ? state_->wait() : Outcome{}; }
  /// On a device with streams: passes when the collective's buffers are done with. Whether it went well says `wait`, which
  /// alone keeps the deadline. nullptr: there is only `wait`.
  [[nodiscard]] std::shared_ptr<const Event> event() { return state_ ? state_->event() : nullptr; }

 private:
  void finish() {
    if (state_) (void)state_->wait();
    state_.reset();
  }
  std::shared_ptr<State> state_;
};

/// One rank's seat in a group of ranks that combine buffers. The seam of the data plane: no LibTorch here.
///
/// Collectives are matched by call order: every rank calls the same ones in the same order. A call returns at
/// once; buffers must stay alive and untouched until its Work is finished. Progress is made inside `poll`, `wait`
/// and later calls of the same rank (and on streams or comm threads where an implementation has them). On a device with
/// streams a collective begins after what the compute stream was given before the call.
///
/// Results are bitwise equal on all ranks: a reduction adds in rank order 0, 1, … N-1, in fp32 for 16-bit floats ("hosts": each host's ranks, then hosts).
///
/// Threads: one caller at a time per object, except `abort` and what `recorder` allows, which any thread may call.
/// Errors: a silent, lost or disagreeing peer is an Outcome of `Work::wait`; after one, the group is broken and
/// every later call fails with the same text. A wrong argument throws Failure{InvalidArgument}.
class Communicator {
 public:
  virtual ~Communicator() = default;

  [[nodiscard]] virtual int rank() const noexcept = 0;
  [[nodiscard]] virtual int size() const noexcept = 0;
  /// "threads", "shared_memory", "hosts", "gloo", "nccl", "self".
  [[nodiscard]] virtual std::string name() const = 0;
  /// True when buffers anywhere are as good as those from `allocate`; else others are copied there and back.
  [[nodiscard]] virtual bool reaches_any_memory() const noexcept = 0;
  /// True when reductions of 16-bit floats can give F32.
  [[nodiscard]] virtual bool widens() const noexcept { return true; }

  /// Replaces `buffer` [n] by its reduction over all ranks. Same n and dtype on every rank.
  [[nodiscard]] virtual Work all_reduce(Buffer buffer, ReduceOp op) = 0;
  /// `input` [N*n] is cut into N parts; `output` [n] becomes the reduction of part `rank()`.
  /// `output` may be part `rank()` of `input` itself. Of a BF16 or F16 `input`, `output` may be F32: the sum as it was
  /// added, not rounded.
  [[nodiscard]] virtual Work reduce_scatter(ConstBuffer input, Buffer output, ReduceOp op) = 0;
  /// Rank r's `output` becomes the reduction over all ranks of elements [begins[r], begins[r+1]) of `buffer`: a
  /// reduce_scatter whose parts may be uneven or empty, straight from a gradient. `begins` [N+1] is the same on all
  /// ranks, ascending from 0 to the buffer's end, and must live like a buffer. `output` may be that part of `buffer`
  /// itself; of BF16 or F16 it may be F32.
  [[nodiscard]] virtual Work reduce_to_owners(ConstBuffer buffer, std::span<const std::size_t> begins, Buffer output, ReduceOp op) = 0;
  /// `output` [N*n] becomes every rank's `input` [n], in rank order. `input` may be part `rank()` of `output`.
  [[nodiscard]] virtual Work all_gather(ConstBuffer input, Buffer output) = 0;
  /// `buffer` [n] becomes that of `root`.
  [[nodiscard]] virtual Work broadcast(Buffer buffer, int root) = 0;
  [[nodiscard]] virtual Work barrier() = 0;

  /// A group of the ranks that give the same `color` (0 or more), in rank order; every rank of this group calls it, and
  /// it waits for them. Both groups can be used from then on; they share memory, not the order of calls. A failure of
  /// this group, an abort too, ends the new one. Throws Failure{DeadlinePassed, Aborted, InvalidArgument, Unsupported}.
  [[nodiscard]] virtual std::unique_ptr<Communicator> split(int color) = 0;

  /// Ends every pending and later collective of the whole group, on all ranks, with Errc::Aborted and `reason`,
  /// within 100 ms. Any thread.
  virtual void abort(const std::string& reason) noexcept = 0;

  /// Memory that the peers can reach without a copy, zeroed and aligned to 64 bytes; collectives on it are fastest.
  /// Released with the last copy of the handle. Never fails over to slower memory silently: throws.
  [[nodiscard]] virtual std::shared_ptr<void> allocate(std::size_t bytes) = 0;

  /// Longest wait of one collective for its peers.
  virtual void set_timeout(std::chrono::milliseconds timeout) = 0;

  /// What this rank called here, and what it sent.
  [[nodiscard]] virtual FlightRecorder& recorder() noexcept = 0;
  /// Names whose the next collectives are ("encoder.5"), in the record and in failures. Costs a copy of 80 bytes. Between ranks
  /// that share memory, two that meet with different labels disagree (Errc::CollectiveMismatch); none goes with any.
  void set_label(std::string_view label) noexcept { recorder().set_label(label); }
  [[nodiscard]] Traffic traffic() noexcept { return recorder().traffic(); }
};

/// A group of one: every collective is a copy.
[[nodiscard]] std::unique_ptr<Communicator> self_communicator();

}  // namespace troupe
