#pragma once

#include <memory>
#include <troupe/data/data_loader.hpp>

#include "batch_pipe.hpp"

namespace troupe {

/// Accelerate's DataLoaderDispatcher: rank 0's batches, which hold all ranks' rows, are broadcast and cut along dim 0.
/// What rank 0 fails with, all ranks fail with.
class DispatchPipe final : public BatchPipe {
 public:
  /// @param inner of rank 0; null on the others.
  DispatchPipe(std::unique_ptr<BatchPipe> inner, DataLoader::BroadcastBytes broadcast, int rank, int world_size);
  /// Collective.
  [[nodiscard]] std::optional<LoadedBatch> next() override;

 private:
  [[nodiscard]] std::string read();
  [[nodiscard]] LoadedBatch share_of(const LoadedBatch& all) const;

  std::unique_ptr<BatchPipe> inner_;
  DataLoader::BroadcastBytes broadcast_;
  int rank_;
  int world_size_;
};

}  // namespace troupe
