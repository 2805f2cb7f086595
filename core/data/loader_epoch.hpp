#pragma once

#include <exception>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <troupe/data/data_loader.hpp>
#include <vector>

#include "batch_pipe.hpp"

namespace troupe {

/// Where a loader and the latest epoch it began stand. An epoch may outlive its loader, so they share it.
struct LoaderShared {
  LoaderState state;
  LoaderStats stats;
  LoaderPosition next;  // where the next epoch starts
  std::optional<LoaderPosition> position;  // of the latest epoch; nothing once another start was set
  std::int64_t consumed = 0;               // samples of all ranks at `position`
  const void* current = nullptr;           // the latest epoch, while it lives
  std::vector<std::int64_t> batch;         // indices of its last batch
  DataLoader::Asked asked;
  DataLoader::Transfer transfer;
};

/// One pass over a rank's batches.
class DataLoader::Iterator::Epoch {
 public:
  using Clock = std::chrono::steady_clock;
  struct Facts {
    std::optional<std::int64_t> size;  ///< batches of the whole epoch; nothing: what comes next says whether there is more
    std::int64_t remainder = -1;       ///< as far as it is known at the beginning
    std::function<std::int64_t(std::int64_t)> samples_after;  ///< so many batches, where the batches themselves are not at hand
  };
  Epoch(std::unique_ptr<BatchPipe> pipe, Facts facts, LoaderPosition start, std::shared_ptr<LoaderShared> shared, Clock::time_point begun);
  ~Epoch();
  Epoch(const Epoch&) = delete;
  Epoch& operator=(const Epoch&) = delete;

  [[nodiscard]] std::optional<Batch> next();

 private:
  struct Ahead {
    BatchMeta meta;
    Batch batch;
    std::function<Batch()> arrived;  // instead of batch, when it is on its way to a device
  };

  [[nodiscard]] bool is_current() const { return shared_->current == this; }
  [[nodiscard]] std::optional<Ahead> fetch();
  /// Fetches the batch after the one that is about to be handed out; what that throws is kept for the next ask.
  void look_ahead();
  void handed_out(const BatchMeta& meta);
  void finish();

  Facts facts_;
  LoaderPosition position_;
  std::int64_t left_ = 0;  // batches, when facts_.size says
  std::map<std::int64_t, std::pair<std::int64_t, std::string>> later_;  // number to samples after it and stream, of batches beyond the position
  std::int64_t consumed_;
  std::shared_ptr<LoaderShared> shared_;
  const bool looks_ahead_;
  std::optional<Ahead> ahead_;
  std::exception_ptr ahead_error_;
  bool fetched_ = false;  // the first batch was, when looking ahead
  Clock::time_point begun_;
  std::optional<Clock::time_point> first_;  // when the first batch was handed out
  std::unique_ptr<BatchPipe> pipe_;
};

}  // namespace troupe
