#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

namespace at {
class Tensor;
}

namespace troupe {

namespace detail {
struct MemoryCounters;
}

/// What a rank's memory is spent on.
enum class MemoryCategory : std::uint8_t {
  Parameters,     ///< what the rank keeps of them all the time
  Gradients,      ///< likewise, shards or whole
  Optimizer,      ///< state and master copies
  Gathered,       ///< parameters gathered for a forward or backward, shards on their way from and to disk, and whole gradients before they are reduced
  Buffers,        ///< of modules
  Communication,  ///< what collectives need besides
  Offloaded,      ///< host memory that holds what was moved off the device
  Activations,    ///< and all other tensors: what the counting allocator saw beyond the above
};
inline constexpr std::size_t num_memory_categories = 8;
[[nodiscard]] std::string_view name(MemoryCategory category) noexcept;

/// Bytes by category.
struct MemoryBytes {
  std::array<std::int64_t, num_memory_categories> bytes{};
  [[nodiscard]] std::int64_t& operator[](MemoryCategory category) { return bytes[static_cast<std::size_t>(category)]; }
  [[nodiscard]] std::int64_t operator[](MemoryCategory category) const { return bytes[static_cast<std::size_t>(category)]; }
};

/// Bytes now, and the most there were since the start or `reset_peaks`.
struct MemoryUsage {
  std::int64_t now = 0;
  std::int64_t peak = 0;
};

/// One rank's memory by category. What its owner charges is counted to the byte, on any device; where `CountTensors`
/// counts as well, all other tensors on the CPU are seen too, as Activations.
///
/// Copies are the same account. Threads: any; a number read while others charge is of some moment of the call. Cost:
/// a few atomic additions a charge.
class MemoryAccount {
 public:
  MemoryAccount();

  /// Who else sees charged memory: a CountTensors of this account, or nobody (an arena, a GPU, tensors older than it).
  enum class Source : std::uint8_t { Counted, Elsewhere };

  /// Bytes in the account from construction to destruction. What is counted moves from Activations to its category:
  /// charge before allocating and release after freeing, lest it be seen as Activations in between.
  class Charge {
   public:
    Charge() = default;
    Charge(const MemoryAccount& account, MemoryCategory category, std::int64_t bytes, Source source = Source::Counted);
    Charge(Charge&& other) noexcept;
    Charge& operator=(Charge&& other) noexcept;
    ~Charge() { resize(0); }
    void resize(std::int64_t bytes) noexcept;
    [[nodiscard]] std::int64_t bytes() const noexcept { return bytes_; }

   private:
    std::shared_ptr<detail::MemoryCounters> counters_;
    std::int64_t bytes_ = 0;
    MemoryCategory category_ = MemoryCategory::Parameters;
    Source source_ = Source::Counted;
  };
  /// Throws Failure{InvalidArgument} for negative bytes and for Activations, which are what nobody charges.
  [[nodiscard]] Charge charge(MemoryCategory category, std::int64_t bytes, Source source = Source::Counted) const {
    return {*this, category, bytes, source};
  }
  /// The bytes of a tensor's storage, already allocated.
  [[nodiscard]] Charge charge(MemoryCategory category, const at::Tensor& tensor) const;

  /// Activations are 0 where no tensors are counted.
  [[nodiscard]] MemoryUsage usage(MemoryCategory category) const noexcept;
  /// All but Offloaded.
  [[nodiscard]] MemoryUsage total() const noexcept;
  /// True once there was a CountTensors of it.
  [[nodiscard]] bool counts_tensors() const noexcept;
  /// Peaks are what is there now.
  void reset_peaks() noexcept;

  /// {"parameters": {"now": 1024, "peak": 1024}, ..., "total": {...}, "counts_tensors": true}
  [[nodiscard]] std::string json() const;
  /// The same to read, one line a category that was used.
  [[nodiscard]] std::string table() const;

 private:
  friend class CountTensors;
  std::shared_ptr<detail::MemoryCounters> counters_;
};

/// The estimate beside the measured peaks, as a table with their quotient.
[[nodiscard]] std::string compare_memory(const MemoryBytes& estimate, const MemoryAccount& measured);

/// While it lives, tensors that the calling thread allocates on the CPU count as `account`'s, until they are freed by
/// whichever thread. The innermost one counts.
///
/// Threads that LibTorch starts (more than one intra-op thread) are not seen when they allocate themselves.
class CountTensors {
 public:
  /// Throws Failure{InvalidArgument} unless `install` was called.
  explicit CountTensors(const MemoryAccount& account);
  CountTensors(const CountTensors&) = delete;
  CountTensors& operator=(const CountTensors&) = delete;
  ~CountTensors();

  /// Puts a counting allocator before LibTorch's for the rest of the process: 64 bytes and about 10 ns an allocation
  /// more. Call it at the start of main, while no other thread runs. A second call does nothing.
  static void install();

 private:
  std::shared_ptr<detail::MemoryCounters> counters_;
  const std::shared_ptr<detail::MemoryCounters>* outer_;
};

}  // namespace troupe
