#include "device_feed.hpp"

#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>

#include <algorithm>
#include <cstring>
#include <utility>

namespace troupe::detail {

namespace {

constexpr std::size_t alignment = 64;

std::size_t aligned(std::size_t bytes) { return (bytes + alignment - 1) / alignment * alignment; }

/// What a slab is freed by: its pool, with the copy that may still read it.
struct Held {
  std::shared_ptr<void> memory;
  std::size_t bytes = 0;
  std::shared_ptr<const Event> busy;
};

}  // namespace

DeviceFeed::DeviceFeed(DeviceRuntime& runtime) : runtime_(runtime), copies_(runtime.create_stream()) {}

std::shared_ptr<void> DeviceFeed::slab(std::size_t bytes) {
  std::shared_ptr<void> memory;
  std::size_t size = bytes;
  {
    const std::lock_guard lock{pool_->mutex};
    auto& free = pool_->free;
    const auto found = std::find_if(free.begin(), free.end(), [&](const auto& slab) { return slab.bytes >= bytes && (!slab.busy || slab.busy->query()); });
    if (found != free.end()) {
      memory = std::move(found->memory);
      size = found->bytes;
      free.erase(found);
    } else {
      // Those that are too small are of no use any more.
      std::erase_if(free, [&](const auto& slab) { return slab.bytes < bytes && (!slab.busy || slab.busy->query()); });
    }
  }
  if (!memory) memory = runtime_.allocate_pinned(size = bytes + bytes / 4);
  auto held = std::make_shared<Held>(Held{std::move(memory), size, nullptr});
  return {held.get(), [held, pool = std::weak_ptr{pool_}](void*) mutable {
            const auto alive = pool.lock();
            if (!alive) {
              if (held->busy) held->busy->synchronize();
              return;
            }
            const std::lock_guard lock{alive->mutex};
            alive->free.push_back({std::move(held->memory), held->bytes, std::move(held->busy)});
          }};
}

DeviceFeed::Packed DeviceFeed::pack(const Batch& batch) {
  std::size_t bytes = 0;
  for (const auto& [name, tensor] : batch) bytes += aligned(tensor.nbytes());
  Packed packed;
  packed.slab = slab(std::max<std::size_t>(bytes, 1));
  auto* to = static_cast<char*>(static_cast<Held*>(packed.slab.get())->memory.get());
  for (const auto& [name, tensor] : batch) {
    const auto dense = tensor.contiguous();
    if (dense.nbytes() > 0) std::memcpy(to, dense.const_data_ptr(), dense.nbytes());
    packed.batch.set(name, at::from_blob(to, dense.sizes(), at::TensorOptions().dtype(dense.scalar_type())));
    to += aligned(dense.nbytes());
  }
  return packed;
}

DeviceFeed::Coming DeviceFeed::begin_copy(Packed packed) {
  const auto device = runtime_.device();
  const auto place = device.kind == Device::Kind::Cuda ? at::Device{at::kCUDA, static_cast<at::DeviceIndex>(device.index)} : at::Device{at::kCPU};
  copies_->wait(*runtime_.compute_stream().record());
  Coming coming;
  for (const auto& [name, tensor] : packed.batch) {
    auto there = at::empty(tensor.sizes(), tensor.options().device(place));
    copies_->copy_async(there.data_ptr(), tensor.const_data_ptr(), tensor.nbytes());
    coming.batch.set(name, std::move(there));
  }
  coming.event = copies_->record();
  static_cast<Held*>(packed.slab.get())->busy = coming.event;
  coming.slab = std::move(packed.slab);
  return coming;
}

Batch DeviceFeed::finish(Coming coming) {
  runtime_.compute_stream().wait(*coming.event);
  return std::move(coming.batch);
}

}  // namespace troupe::detail
