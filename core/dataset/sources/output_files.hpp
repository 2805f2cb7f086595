#pragma once

#include <arrow/io/type_fwd.h>

#include <troupe/dataset/sinks.hpp>

#include <functional>
#include <memory>
#include <string>
#include <vector>

namespace troupe::detail {

/// Writes batches into one file in some format.
class FormatWriter {
 public:
  virtual ~FormatWriter() = default;
  virtual void write(const RecordBatchPtr& rows) = 0;
  virtual void finish() = 0;  ///< footers; the file itself is closed by others
};
using MakeWriter = std::function<std::unique_ptr<FormatWriter>(const std::shared_ptr<arrow::io::OutputStream>& out, const std::string& where)>;

/// All of `rows` into files "<prefix>-00000<extension>" of `directory`, as `WriteOptions` says. Returns their paths.
[[nodiscard]] std::vector<std::string> write_files(BatchStream rows, const std::string& directory, const WriteOptions& options, const std::string& extension, const MakeWriter& make);

}  // namespace troupe::detail
