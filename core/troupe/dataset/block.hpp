#pragma once

#include <cstdint>
#include <memory>

namespace arrow {
class RecordBatch;
class Schema;
}  // namespace arrow

namespace troupe {

/// Some rows of a data set on their way through it, and which rows of their fragment they were made from.
///
/// Stages may change, drop and multiply rows: a block then has another number of rows than `num_source_rows`, but it still
/// stands for those rows of the fragment, all of them. That is what positions count.
struct Block {
  std::shared_ptr<arrow::RecordBatch> rows;
  std::int64_t fragment = 0;         ///< index into the source's fragments
  std::int64_t first_source_row = 0; ///< in the fragment, from 0
  std::int64_t num_source_rows = 0;
};

/// Bytes that the block's columns take up, shared ones counted in full.
[[nodiscard]] std::int64_t block_bytes(const Block& block);

}  // namespace troupe
