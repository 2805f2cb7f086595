#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <troupe/data/data_loader.hpp>
#include <troupe/data/sharding.hpp>
#include <vector>

#include "batch_pipe.hpp"

namespace troupe {

/// How one reader goes through a stream. Of `sharding` num_samples and even_batches do not count: the end is where the
/// stream ends, and the last round is filled up from its beginning (Accelerate's IterableDatasetShard), where there are several ranks.
struct StreamShare {
  BatchSharding sharding;
  std::int64_t round_to = 1;  ///< a last batch of one rank's is filled up to a multiple of it
  int worker = 0;             ///< this reader makes batches worker, worker + num_workers, … from the start on
  int num_workers = 1;
};

/// Reads a rank's samples out of a stream: passes over the others', and reads the stream's beginning again where the
/// last round must be filled up.
class StreamReader final : public JobSource {
 public:
  StreamReader(std::shared_ptr<const IterableDataset> dataset, const LoaderPosition& start, const StreamShare& share);
  [[nodiscard]] std::optional<BatchJob> next() override;

 private:
  void skip_to(std::int64_t position);
  void read(std::int64_t count, BatchJob& job);
  void fill_up(std::int64_t from, std::int64_t count, BatchJob& job);

  std::shared_ptr<const IterableDataset> dataset_;
  std::int64_t epoch_;
  StreamShare share_;
  std::unique_ptr<IterableDataset::Pass> pass_;
  std::int64_t at_ = 0;     // samples before the next that the pass gives
  bool ended_ = false;      // at_ is then the stream's length
  std::int64_t number_;     // of the next batch
  std::vector<std::int64_t> ahead_;
};

}  // namespace troupe
