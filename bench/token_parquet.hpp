#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace troupe::bench {

/// A set of Parquet files with the columns "ids" (fixed-size list of int64, or list) and "label" (int64): the same bytes for the same options.
struct TokenParquet {
  std::int64_t num_rows = 100'000;
  int num_files = 8;
  std::int32_t ids_per_row = 64;
  std::int64_t row_group_rows = 4096;
  std::uint64_t vocabulary = 30'522;
  /// Ids as plain 8-byte numbers, uncompressed: files take as much room as the rows do in memory, and reading them decodes nothing.
  bool plain = false;
  bool lists = false;  ///< ids are list<int64>; else fixed_size_list
};

/// Writes part-00000.parquet … into `directory`, which must hold none. Returns the paths.
std::vector<std::string> write_token_parquet(const std::string& directory, const TokenParquet& options);

/// Rows so that `plain` files hold about `bytes` in all.
[[nodiscard]] inline std::int64_t rows_of_bytes(std::int64_t bytes, std::int32_t ids_per_row) { return bytes / (8 * (std::int64_t{ids_per_row} + 1)); }

/// id `position` of row `row`, and its label: what a reader can check.
[[nodiscard]] inline std::uint64_t mixed(std::uint64_t x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
  x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
  return x ^ (x >> 31);
}
[[nodiscard]] inline std::int64_t token_at(std::int64_t row, std::int32_t position, std::uint64_t vocabulary) {
  return static_cast<std::int64_t>(mixed(static_cast<std::uint64_t>(row) * 0x9e3779b97f4a7c15 + static_cast<std::uint64_t>(position)) % vocabulary);
}
[[nodiscard]] inline std::int64_t label_at(std::int64_t row) { return static_cast<std::int64_t>(mixed(static_cast<std::uint64_t>(row)) & 1); }

}  // namespace troupe::bench
