#pragma once

#include <arrow/io/type_fwd.h>
#include <arrow/type_fwd.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace troupe::detail {

struct IpcBatch {
  std::int64_t offset = 0;          ///< of its message
  std::int32_t metadata_bytes = 0;  ///< with the prefix
  std::int64_t body_bytes = 0;
  std::int64_t num_rows = 0;
};

/// Where the record batches of an IPC file or stream are. Found message by message, without reading any body.
struct IpcLayout {
  bool file_format = false;
  bool dictionaries = false;
  std::shared_ptr<arrow::Schema> schema;
  std::vector<IpcBatch> batches;
};

/// Throws Failure{FileCorrupt}.
[[nodiscard]] IpcLayout read_ipc_layout(arrow::io::RandomAccessFile& input, const std::string& name);

}  // namespace troupe::detail
