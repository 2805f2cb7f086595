#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <troupe/data/datasets.hpp>
#include <vector>

namespace troupe {

/// What is known of one of a rank's batches beside its tensors.
struct BatchMeta {
  std::int64_t number = 0;            ///< among the rank's batches of the epoch
  std::vector<std::int64_t> indices;  ///< of its samples; of a stream: their numbers in it
  std::int64_t remainder = -1;        ///< LoaderState::remainder, if this batch is the last
  std::int64_t samples_after = 0;     ///< of the epoch's order, that all ranks have taken with it
  std::string stream;                 ///< where the pass stands after it; may be empty
};

/// A batch to be made: from `meta.indices`, or from samples that were read already.
struct BatchJob {
  BatchMeta meta;
  std::vector<TensorDict> samples;
};

struct LoadedBatch {
  BatchMeta meta;
  Batch batch;
};

/// The jobs of a rank's epoch, in order. Threads: one caller at a time.
class JobSource {
 public:
  virtual ~JobSource() = default;
  [[nodiscard]] virtual std::optional<BatchJob> next() = 0;
};

/// Loaded batches of a rank's epoch. Threads: one caller. What cannot be loaded throws at the batch it belongs to.
class BatchPipe {
 public:
  virtual ~BatchPipe() = default;
  [[nodiscard]] virtual std::optional<LoadedBatch> next() = 0;
};

using MakeBatch = std::function<LoadedBatch(BatchJob)>;

/// Loads in the caller's thread.
class DirectPipe final : public BatchPipe {
 public:
  DirectPipe(std::unique_ptr<JobSource> source, MakeBatch make) : source_(std::move(source)), make_(std::move(make)) {}
  [[nodiscard]] std::optional<LoadedBatch> next() override {
    auto job = source_->next();
    if (!job) return std::nullopt;
    return make_(std::move(*job));
  }

 private:
  std::unique_ptr<JobSource> source_;
  MakeBatch make_;
};

}  // namespace troupe
