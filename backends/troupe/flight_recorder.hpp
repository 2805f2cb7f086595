#pragma once

#include <troupe/buffer.hpp>
#include <troupe/errors.hpp>

#include <array>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace troupe {

enum class ReduceOp : std::uint8_t { Sum, Mean, Max, Min };

enum class Call : std::uint8_t { AllReduce, ReduceScatter, AllGather, Broadcast, Barrier, ReduceToOwners };
inline constexpr std::size_t kNumCalls = 6;

/// "all_reduce"
[[nodiscard]] std::string_view name(Call call) noexcept;

/// What the ranks of a group must agree on when they meet.
struct Collective {
  Call call = Call::Barrier;
  ReduceOp op = ReduceOp::Sum;    ///< of reductions
  DType dtype = DType::U8;        ///< of what is sent
  DType result = DType::U8;       ///< of what comes out
  std::int32_t root = 0;          ///< of a broadcast; of reduce_to_owners a hash of the ranges
  std::uint64_t bytes = 0;        ///< of a rank's buffer; of its input where there are two
  bool operator==(const Collective&) const = default;
};

/// Whose collective it is: the end of a name, in a fixed number of words that can be copied without an allocation.
struct CollectiveLabel {
  static constexpr std::size_t kWords = 10;
  std::array<std::uint64_t, kWords> words{};
  std::uint64_t hash = 0;  ///< of the words; 0: no label, or one that others need not share
  CollectiveLabel() = default;
  explicit CollectiveLabel(std::string_view text) noexcept;
  [[nodiscard]] std::string text() const;
};

/// "all_gather #812 of `encoder.5` (F32 x 1024)"
[[nodiscard]] std::string describe(const Collective& collective, std::uint64_t sequence, const CollectiveLabel& label);

/// What one rank sends on the wire by the ring algorithms, whatever the implementation does: of S bytes in N ranks
/// all_reduce 2·S·(N-1)/N, reduce_scatter S·(N-1)/N of its input, all_gather S·(N-1)/N of its output, broadcast
/// and reduce_to_owners S·(N-1)/N (the mean over ranks), barrier 0.
[[nodiscard]] std::uint64_t sent_bytes(const Collective& collective, int ranks) noexcept;

/// Collectives, and what was sent for them.
struct Traffic {
  std::uint64_t calls = 0;
  std::uint64_t sent_bytes = 0;
};

/// One collective of a rank as it was recorded.
struct FlightEntry {
  std::uint64_t sequence = 0;  ///< from 1
  Collective collective;
  std::string label;
  std::chrono::steady_clock::time_point posted;
  std::chrono::steady_clock::time_point finished;  ///< when this rank saw the end; meaningless while under way
  bool under_way = true;
  Errc outcome = Errc::Ok;
};

/// The latest collectives of one rank in one group, and what it has sent: about 60 ns a collective, no allocation.
///
/// Threads: one writer (the rank); `entries`, `dump` and `traffic` may be called by any thread at any time.
class FlightRecorder {
 public:
  static constexpr std::size_t kCapacity = 2000;

  /// `ranks`: of this group, by the numbers people know them by; `rank`: index in it.
  FlightRecorder(std::string group, int rank, std::vector<int> ranks);

  /// Of the collectives posted from here on. Copied; of a long name the end is kept.
  /// `compared`: other ranks must give the same, else it only explains.
  void set_label(std::string_view label, bool compared = true) noexcept {
    label_ = CollectiveLabel{label};
    if (!compared) label_.hash = 0;
  }
  [[nodiscard]] const CollectiveLabel& label() const noexcept { return label_; }

  [[nodiscard]] Traffic traffic(Call call) const noexcept;
  [[nodiscard]] Traffic traffic() const noexcept;  ///< of all calls

  /// The last `kCapacity` collectives, oldest first.
  [[nodiscard]] std::vector<FlightEntry> entries() const;
  /// The same as JSON lines, for a post-mortem; times are seconds of the system clock.
  [[nodiscard]] std::string dump() const;

  // What implementations call.
  using Time = std::chrono::steady_clock::time_point;
  /// Returns the collective's sequence number, from 1.
  std::uint64_t post(const Collective& collective, Time now) noexcept;
  void finish(std::uint64_t sequence, Errc outcome, Time now) noexcept;
  [[nodiscard]] std::uint64_t sequence() const noexcept { return sequence_; }

 private:
  /// Written by the rank while others may read: valid when both marks say the same sequence.
  struct Entry {
    std::atomic<std::uint64_t> begun, sequence, what, bytes;
    std::atomic<std::int64_t> posted, end;  ///< end: finish time, or 0
    std::array<std::atomic<std::uint64_t>, CollectiveLabel::kWords> label;
  };
  struct Counter {
    std::atomic<std::uint64_t> calls{0}, bytes{0};
  };
  [[nodiscard]] bool read(std::uint64_t sequence, FlightEntry& out) const;

  std::string group_;
  int rank_;
  std::vector<int> ranks_;
  CollectiveLabel label_;
  std::uint64_t sequence_ = 0;
  std::atomic<std::uint64_t> latest_{0};
  std::unique_ptr<Entry[]> ring_;
  std::array<std::atomic<std::uint16_t>, kCapacity> outcomes_{};
  std::array<Counter, kNumCalls> counters_;
};

}  // namespace troupe
