#pragma once

#include <troupe/dataset/columns.hpp>

#include <cstdint>
#include <string>
#include <vector>

namespace troupe {

/// What writers share. Files are called <prefix>-00000.parquet and so on; none has its name before it is whole and on disk (it is written under a
/// hidden name that sources leave out, fsynced, renamed, its directory fsynced). A file that is there is never replaced:
/// Failure{AlreadyExists}. In an object store ("s3://bucket/prefix") an object appears when it is whole.
struct WriteOptions {
  std::string prefix = "part";              ///< several writers into one directory each need their own: "rank3"
  std::int64_t rows_per_file = 1'000'000;   ///< at most; 0: one file
};

/// Each writes all of `rows` into files of `directory`, which is made when missing, and returns their paths. Without a row there is one file
/// that holds none, so that the columns are known. Failure{StorageUnavailable} names the file; files finished before stay, the one
/// under way is removed.
struct ParquetWriteOptions {
  WriteOptions files;
  std::int64_t row_group_rows = 65'536;
  std::string compression = "zstd";  ///< none, snappy, gzip, zstd, lz4, brotli
  bool dictionary = true;            ///< repeated values once; off for values that hardly repeat
};
[[nodiscard]] std::vector<std::string> write_parquet(BatchStream rows, const std::string& directory, const ParquetWriteOptions& options);
[[nodiscard]] std::vector<std::string> write_parquet(BatchStream rows, const std::string& directory);  // GCC 12 warns of a default argument

[[nodiscard]] std::vector<std::string> write_ipc(BatchStream rows, const std::string& directory, const WriteOptions& options = {});

struct CsvWriteOptions {
  WriteOptions files;
  char delimiter = ',';
  bool header = true;
};
[[nodiscard]] std::vector<std::string> write_csv(BatchStream rows, const std::string& directory, const CsvWriteOptions& options = {});

/// One object a line. NaN and infinity become null; binary columns are a Failure{Unsupported}.
[[nodiscard]] std::vector<std::string> write_json_lines(BatchStream rows, const std::string& directory, const WriteOptions& options = {});

}  // namespace troupe
