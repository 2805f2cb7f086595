#include "memory_counters.hpp"

#include <troupe/errors.hpp>
#include <troupe/memory_account.hpp>

#include <ATen/core/Tensor.h>
#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>

#include <memory>
#include <new>

namespace troupe {

namespace {

using Counters = std::shared_ptr<detail::MemoryCounters>;

/// The account that this thread's allocations count for; it lies in the innermost CountTensors.
thread_local const Counters* counting = nullptr;

/// Stands before the data, so that context and data are one pointer, as raw allocations demand.
struct Header {
  Counters counters;
  std::size_t bytes;
  c10::DeleterFnPtr release;
};
constexpr std::size_t header_bytes = 64;  // keeps the data's alignment
static_assert(sizeof(Header) <= header_bytes);

Header* header_of(void* data) { return reinterpret_cast<Header*>(static_cast<char*>(data) - header_bytes); }

void free_counted(void* data) {
  if (!data) return;
  auto* const header = header_of(data);
  if (header->counters) header->counters->count_tensor(-static_cast<std::int64_t>(header->bytes));
  const auto release = header->release;
  std::destroy_at(header);
  release(header);
}

class CountingAllocator final : public c10::Allocator {
 public:
  explicit CountingAllocator(c10::Allocator& base) : base_(base) {}
  c10::DataPtr allocate(std::size_t bytes) override {
    if (bytes == 0) return {nullptr, nullptr, &free_counted, c10::Device(c10::kCPU)};
    auto* const block = static_cast<char*>(base_.raw_allocate(bytes + header_bytes));
    const auto* const header = new (block) Header{counting ? *counting : nullptr, bytes, base_.raw_deleter()};
    if (header->counters) header->counters->count_tensor(static_cast<std::int64_t>(bytes));
    return {block + header_bytes, block + header_bytes, &free_counted, c10::Device(c10::kCPU)};
  }
  [[nodiscard]] c10::DeleterFnPtr raw_deleter() const override { return &free_counted; }
  void copy_data(void* to, const void* from, std::size_t count) const override { default_copy_data(to, from, count); }

 private:
  c10::Allocator& base_;
};

bool installed() { return c10::GetCPUAllocator()->raw_deleter() == &free_counted; }

}  // namespace

void CountTensors::install() {
  if (installed()) return;
  constexpr std::uint8_t above_default = 1;
  // Lives to the end of the process: tensors may outlive everything else.
  c10::SetCPUAllocator(new CountingAllocator{*c10::GetCPUAllocator()}, above_default);
}

CountTensors::CountTensors(const MemoryAccount& account) : counters_(account.counters_), outer_(counting) {
  if (!installed()) throw Failure{Errc::InvalidArgument, "CountTensors: call CountTensors::install() at the start of main first"};
  counters_->counts_tensors = true;
  counting = &counters_;
}

CountTensors::~CountTensors() { counting = outer_; }

MemoryAccount::Charge MemoryAccount::charge(MemoryCategory category, const at::Tensor& tensor) const {
  const auto& data = tensor.storage().data_ptr();
  const bool counted = data.get_deleter() == &free_counted && data.get() && header_of(data.get())->counters == counters_;
  return {*this, category, static_cast<std::int64_t>(tensor.storage().nbytes()), counted ? Source::Counted : Source::Elsewhere};
}

}  // namespace troupe
