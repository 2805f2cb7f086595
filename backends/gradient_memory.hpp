#pragma once

#include <troupe/communicator.hpp>

#include <cstddef>
#include <memory>
#include <vector>

namespace troupe::detail {

/// Puts gradients where the communicator's peers reach them: while it lives, a CPU tensor of exactly one of the given sizes is
/// allocated from `Communicator::allocate`, as long as a block of that size is free. Autograd's large gradients are then
/// reduced where they lie, instead of being copied into a bucket, and their pages are those of the step before: fresh ones cost a
/// page fault for every 4 KiB, which threads of one process take turns at. Other tensors of these sizes take a block now and then; a
/// gradient that finds none is allocated as ever.
///
/// All blocks are made by the constructor and used again and again. Tensors may outlive this object.
///
/// Threads: constructor and destructor from the rank's own; tensors are allocated and freed on any.
class GradientMemory {
 public:
  /// @param sizes in bytes, one entry a gradient.
  GradientMemory(Communicator& communicator, const std::vector<std::size_t>& sizes);
  ~GradientMemory();
  GradientMemory(const GradientMemory&) = delete;
  GradientMemory& operator=(const GradientMemory&) = delete;

 private:
  struct Pool;
  friend class ReachableAllocator;
  std::shared_ptr<Pool> pool_;
};

}  // namespace troupe::detail
