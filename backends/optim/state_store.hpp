#pragma once

#include <troupe/optimizer.hpp>

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <utility>
#include <vector>

namespace troupe::detail {

/// A run of elements to update, and where its state lies.
struct Segment {
  Elements elements;  ///< without state
  const ParamGroup* group = nullptr;
  std::int64_t step = 0;
  std::size_t block = 0;
  std::int64_t first = 0;  ///< its first element in the block
};

/// Where an optimizer's state lies: blocks of elements, each in every slot.
///
/// Threads: one caller at a time.
class StateStore {
 public:
  using Apply = std::function<void(const Elements& elements, const Segment& segment)>;
  struct BlockSize {
    std::int64_t count = 0;
    at::ScalarType dtype = at::kFloat;
    at::Device device = at::kCPU;
  };

  virtual ~StateStore() = default;
  /// Takes the room for these blocks now, so that it cannot lack later.
  virtual void reserve(const std::vector<BlockSize>& blocks) = 0;
  /// A new block that holds the slots' initial values. Blocks count 0, 1, …
  virtual std::size_t add(BlockSize size) = 0;
  /// Calls `apply` once for every element of every segment, its state in reach, in parts of a length that suits the store.
  /// @param segments disjoint, ascending by block and first.
  virtual void update(const std::vector<Segment>& segments, const Apply& apply) = 0;
  /// `count` elements of a slot, 1-D: a view, or a copy.
  [[nodiscard]] virtual at::Tensor read(std::size_t slot, std::size_t block, std::int64_t first, std::int64_t count) = 0;
  virtual void write(std::size_t slot, std::size_t block, std::int64_t first, const at::Tensor& values) = 0;
  [[nodiscard]] virtual bool on_disk() const noexcept { return false; }
  /// On disk: the bytes of `count` elements that were written before, mapped, in order. See Optimizer::state_on_disk.
  [[nodiscard]] virtual std::vector<std::span<const std::byte>> map(std::size_t /*slot*/, std::size_t /*block*/, std::int64_t /*first*/,
                                                                    std::int64_t /*count*/, std::shared_ptr<void>& /*mapping*/) {
    return {};
  }
  /// Forgets all blocks.
  virtual void clear() = 0;
};

/// In this process' memory. @param initial one value a slot.
[[nodiscard]] std::unique_ptr<StateStore> make_memory_store(std::vector<double> initial);

/// In a file, chunk by chunk; Optimizer::set_offload says how and what it throws.
[[nodiscard]] std::unique_ptr<StateStore> make_disk_store(std::vector<double> initial, const Offload& offload, int rank, DiskIo io);

}  // namespace troupe::detail
