#pragma once

#include <arrow/io/type_fwd.h>
#include <arrow/type_fwd.h>

#include <cstdint>
#include <filesystem>
#include <memory>

namespace troupe::detail {

/// Runs of record batches in one temporary file without a name: it is gone when the process ends, however that comes about.
class SpillFile {
 public:
  /// @param directory empty: the system's temporary one.
  explicit SpillFile(const std::filesystem::path& directory);
  ~SpillFile();
  SpillFile(const SpillFile&) = delete;
  SpillFile& operator=(const SpillFile&) = delete;

  /// Writes `rows` in batches of `batch_rows`; the run is read batch by batch, any number of runs side by side, while this object lives.
  [[nodiscard]] std::shared_ptr<arrow::RecordBatchReader> write_run(const std::shared_ptr<arrow::RecordBatch>& rows, std::int64_t batch_rows);

 private:
  std::filesystem::path directory_;
  std::shared_ptr<arrow::io::ReadableFile> file_;
  std::shared_ptr<arrow::io::FileOutputStream> out_;
};

}  // namespace troupe::detail
