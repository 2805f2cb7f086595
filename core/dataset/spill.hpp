#pragma once

#include "derived.hpp"

namespace troupe::detail {

/// Batches kept for later: in memory, and beyond a limit in a file that has no name, so that no crash leaves it behind. Any number of threads.
class SpillStore {
 public:
  explicit SpillStore(std::int64_t memory_bytes) : memory_left_(memory_bytes) {}
  ~SpillStore();
  SpillStore(const SpillStore&) = delete;
  SpillStore& operator=(const SpillStore&) = delete;

  /// Returns the batch's number. Throws Failure{StorageUnavailable} when the disk is full.
  std::size_t add(const Batch& rows);
  [[nodiscard]] Batch get(std::size_t number) const;
  [[nodiscard]] std::int64_t rows(std::size_t number) const;
  [[nodiscard]] std::size_t size() const;
  [[nodiscard]] std::int64_t file_bytes() const;

 private:
  struct Entry {
    Batch rows;  ///< nothing: in the file
    std::int64_t offset = 0;
    std::int64_t bytes = 0;
    std::int64_t num_rows = 0;
  };
  mutable std::mutex mutex_;
  std::vector<Entry> entries_;
  std::int64_t memory_left_;
  std::int64_t end_ = 0;
  int file_ = -1;
};

/// The batches of a store as a source, a fragment each.
[[nodiscard]] SourcePtr spilled_source(std::shared_ptr<const SpillStore> store, std::shared_ptr<arrow::Schema> schema, std::string fingerprint);

/// Gives out one batch as blocks from row `first_row` on.
[[nodiscard]] std::unique_ptr<FragmentReader> batch_reader(Batch rows, std::int64_t fragment, std::int64_t first_row, const ReadOptions& options);

}  // namespace troupe::detail
