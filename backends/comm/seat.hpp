#pragma once

#include "arena.hpp"
#include "request.hpp"
#include "shared_state.hpp"

#include <deque>
#include <memory>
#include <vector>

namespace troupe::detail {

class Seat;

/// One collective of one rank.
class Operation final : public Work::State {
 public:
  Operation(std::shared_ptr<Seat> seat, const Request& request) : seat_(std::move(seat)), request_(request) {}
  bool poll() override;
  Outcome wait() override;

 private:
  friend class Seat;
  std::shared_ptr<Seat> seat_;  ///< given up when finished
  Request request_;
  std::uint64_t sequence_ = 0;
  std::chrono::steady_clock::time_point deadline_;
  std::size_t chunk_bytes_ = 0;
  std::uint32_t num_chunks_ = 0;
  bool exhausted_ = false;  ///< every chunk has a rank that works on it
  bool finished_ = false;
  Outcome outcome_;
  std::shared_ptr<void> input_copy_, output_copy_;  ///< where the peers find buffers that they cannot reach
};

/// A rank's part in the collectives of a group whose memory all ranks can reach: the same for threads and processes.
///
/// A collective is a number of chunks. A rank posts its buffers; the last one to post lays the chunks out (a single
/// small one it does at once, so the others need not come back for it), and from then on any rank that calls anything
/// takes chunks that nobody works on: it combines them over all ranks in rank order and writes them to every rank that
/// wants them. So there is no thread for communication, posting costs next to nothing, and who does what has no
/// influence on the result. A rank that waits takes all chunks it can get, one that only passes by takes its share.
///
/// Threads: one caller at a time, except `abort`.
class Seat : public std::enable_shared_from_this<Seat> {
 public:
  /// `arena`: for ranks that are processes.
  Seat(std::shared_ptr<SharedState> state, int rank, std::shared_ptr<Arena> arena);

  [[nodiscard]] Work post(const Request& request);
  void leave() noexcept;
  [[nodiscard]] SharedState& state() noexcept { return *state_; }
  [[nodiscard]] int rank() const noexcept { return rank_; }
  /// Of the latest collective, from 1: the same on all ranks that have called the same.
  [[nodiscard]] std::uint64_t sequence() const noexcept { return recorder_.sequence(); }
  [[nodiscard]] FlightRecorder& recorder() noexcept { return recorder_; }
  [[nodiscard]] std::chrono::milliseconds timeout() const noexcept { return timeout_; }
  void set_timeout(std::chrono::milliseconds timeout) noexcept { timeout_ = timeout; }

 private:
  friend class Operation;
  using Clock = std::chrono::steady_clock;

  bool poll(Operation& operation);
  void wait(Operation& operation);

  void lay_out(Operation& operation) const;
  std::uint64_t reachable_input(Operation& operation);
  std::uint64_t reachable_output(Operation& operation, std::uint64_t input);
  void start(Operation& operation);
  enum class Effort { Share, All };
  /// Finishes what is finished, takes chunks (a rank's share of each collective, or all), fails all in a broken group.
  void progress(Effort effort);
  void take_chunks(Operation& operation, std::uint32_t limit);
  void do_chunk(Operation& operation, std::uint32_t chunk);
  void reduce_range(const Operation& operation, std::size_t begin, std::size_t end);
  void copy_range(const Operation& operation, std::size_t begin, std::size_t end);
  void complete(Operation& operation);
  void end(Operation& operation, Errc outcome);
  void fail_all();
  void settle() noexcept;

  std::shared_ptr<SharedState> state_;
  int rank_;
  std::shared_ptr<Arena> arena_;
  std::chrono::milliseconds timeout_;
  int spins_;
  FlightRecorder recorder_;
  std::deque<std::shared_ptr<Operation>> pending_;
  std::vector<std::byte*> sources_, targets_;
};

}  // namespace troupe::detail
