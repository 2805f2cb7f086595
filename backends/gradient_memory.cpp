#include "gradient_memory.hpp"

#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>

#include <algorithm>
#include <atomic>
#include <map>
#include <mutex>
#include <utility>

namespace troupe::detail {

/// Free blocks by size.
struct GradientMemory::Pool {
  std::mutex mutex;
  std::multimap<std::size_t, std::shared_ptr<void>> free;
  bool closed = false;

  std::shared_ptr<void> take(std::size_t bytes) {
    const std::scoped_lock lock{mutex};
    auto found = free.extract(bytes);
    return found.empty() ? nullptr : std::move(found.mapped());
  }
  void give_back(std::size_t bytes, std::shared_ptr<void> memory) {
    const std::scoped_lock lock{mutex};
    if (!closed) free.emplace(bytes, std::move(memory));
  }
};

/// LibTorch's allocator for CPU tensors, but for those that a pool has a block for.
class ReachableAllocator final : public c10::Allocator {
 public:
  using Pool = GradientMemory::Pool;

  explicit ReachableAllocator(c10::Allocator& base) : base_(base) {}

  c10::DataPtr allocate(std::size_t bytes) override {
    if (bytes >= smallest_.load(std::memory_order_relaxed)) {
      for (const auto& pool : pools()) {
        auto memory = pool->take(bytes);
        if (!memory) continue;
        auto* const data = memory.get();
        return {data, new Block{pool, bytes, std::move(memory)}, &release, c10::Device(c10::kCPU)};
      }
    }
    return base_.allocate(bytes);
  }
  /// Of what `base_` allocated; raw allocations never are of a gradient.
  [[nodiscard]] c10::DeleterFnPtr raw_deleter() const override { return base_.raw_deleter(); }
  void copy_data(void* to, const void* from, std::size_t count) const override { default_copy_data(to, from, count); }

  void add(const std::shared_ptr<Pool>& pool, std::size_t smallest) {
    const std::scoped_lock lock{mutex_};
    pools_.push_back(pool);
    smallest_ = std::min(smallest_.load(), smallest);
  }
  void remove(const std::shared_ptr<Pool>& pool) {
    const std::scoped_lock lock{mutex_};
    std::erase(pools_, pool);
    if (pools_.empty()) smallest_ = never;
  }

  /// The process's, put in front of LibTorch's when first asked for. Lives to the end of the process: tensors may outlive
  /// everything else.
  static ReachableAllocator& instance() {
    static auto* const allocator = [] {
      constexpr std::uint8_t above_counting = 2;
      auto* const made = new ReachableAllocator{*c10::GetCPUAllocator()};
      c10::SetCPUAllocator(made, above_counting);
      return made;
    }();
    return *allocator;
  }

 private:
  struct Block {
    std::shared_ptr<Pool> pool;
    std::size_t bytes;
    std::shared_ptr<void> memory;
  };
  static void release(void* context) {
    const std::unique_ptr<Block> block{static_cast<Block*>(context)};
    block->pool->give_back(block->bytes, std::move(block->memory));
  }
  std::vector<std::shared_ptr<Pool>> pools() {
    const std::scoped_lock lock{mutex_};
    return pools_;
  }

  static constexpr std::size_t never = ~std::size_t{0};
  c10::Allocator& base_;
  std::atomic<std::size_t> smallest_{never};
  std::mutex mutex_;
  std::vector<std::shared_ptr<Pool>> pools_;
};

GradientMemory::GradientMemory(Communicator& communicator, const std::vector<std::size_t>& sizes) : pool_(std::make_shared<Pool>()) {
  for (const auto bytes : sizes) pool_->free.emplace(bytes, communicator.allocate(bytes));
  if (!sizes.empty()) ReachableAllocator::instance().add(pool_, *std::min_element(sizes.begin(), sizes.end()));
}

GradientMemory::~GradientMemory() {
  ReachableAllocator::instance().remove(pool_);
  const std::scoped_lock lock{pool_->mutex};
  pool_->closed = true;
  pool_->free.clear();
}

}  // namespace troupe::detail
