#pragma once

#include <troupe/memory_account.hpp>

#include <array>
#include <atomic>

namespace troupe::detail {

struct MemoryCounter {
  std::atomic<std::int64_t> now{0};
  std::atomic<std::int64_t> peak{0};

  void add(std::int64_t bytes) noexcept {
    const auto value = now.fetch_add(bytes, std::memory_order_relaxed) + bytes;
    auto highest = peak.load(std::memory_order_relaxed);
    while (value > highest && !peak.compare_exchange_weak(highest, value, std::memory_order_relaxed)) {
    }
  }
  [[nodiscard]] MemoryUsage usage() const noexcept { return {now.load(std::memory_order_relaxed), peak.load(std::memory_order_relaxed)}; }
  void reset_peak() noexcept { peak.store(now.load(std::memory_order_relaxed), std::memory_order_relaxed); }
};

struct MemoryCounters {
  std::array<MemoryCounter, num_memory_categories> categories;
  MemoryCounter charged;  ///< all categories but Offloaded and Activations
  MemoryCounter seen;     ///< counted tensors that are not Offloaded, and what is charged from elsewhere
  std::atomic<bool> counts_tensors{false};

  [[nodiscard]] MemoryCounter& of(MemoryCategory category) noexcept { return categories[static_cast<std::size_t>(category)]; }
  /// A tensor was allocated, or freed: negative bytes.
  void count_tensor(std::int64_t bytes) noexcept {
    of(MemoryCategory::Activations).add(bytes);
    seen.add(bytes);
  }
};

}  // namespace troupe::detail
