#pragma once

#include "batch_maker.hpp"

#include <troupe/data/training_stream.hpp>

#include <chrono>

namespace troupe {

/// What all handles of an iterator, and its latest pass, share.
struct DataIterator::Batches::Shared final : TrainingStream {
  Shared(Dataset rows, Setup with) : dataset(std::move(rows)), setup(std::move(with)) {}

  const std::string& name() const noexcept override { return setup.name; }
  const LoaderState& state() const noexcept override { return loader_state; }
  std::optional<std::int64_t> real_rows() const noexcept override;
  void set_asked(DataLoader::Asked with) override { asked = std::move(with); }
  std::int64_t epoch() const noexcept override { return at ? at->epoch : next_epoch; }
  std::string position() const override;
  void resume(const std::vector<std::string>& positions) override;

  /// The stream of the epoch that begins, from where it begins.
  [[nodiscard]] DatasetStream begin_epoch(const IterBatchesOptions& options);

  Dataset dataset;
  Setup setup;
  DataLoader::Asked asked;
  LoaderState loader_state;
  LoaderStats loader_stats;
  StreamStats stream_stats;                  ///< of the latest pass, when it ended
  std::function<StreamStats()> live_stats;   ///< of the one that lives
  const void* current = nullptr;             ///< the latest pass, while it lives
  std::int64_t rows_in_hand = 0, padding_in_hand = 0;

  std::int64_t next_epoch = 0;               ///< where the next epoch begins,
  std::vector<DatasetCursor> next_cursors;   ///< or what is left of it; empty: all
  std::optional<DatasetCursor> at;           ///< behind the batch handed out last; nothing once another start was set
  bool at_beginning = false;                 ///< `at` has no ranges: nothing was handed out of a whole epoch
};

}  // namespace troupe
