#include <arrow/array.h>
#include <arrow/record_batch.h>
#include <arrow/util/byte_size.h>

#include <troupe/dataset/block.hpp>

namespace troupe {

std::int64_t block_bytes(const Block& block) {
  return block.rows ? arrow::util::TotalBufferSize(*block.rows) : 0;
}

}  // namespace troupe
