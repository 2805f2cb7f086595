#pragma once

#include <arrow/type_fwd.h>

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace troupe::detail {

/// What a .npy file says before its numbers.
struct NpyHeader {
  std::shared_ptr<arrow::DataType> type;  ///< of one number
  std::vector<std::int64_t> shape;        ///< at least one axis
  std::int64_t data_begin = 0;            ///< bytes before the first number
  /// Numbers of one row: the product of all axes but the first.
  std::int64_t row_width = 1;
};

/// Bytes that hold every header that is taken.
constexpr std::int64_t kMaxNpyHeaderBytes = 16 << 10;

/// @param begin the first bytes of the file, `kMaxNpyHeaderBytes` or all. @param file_bytes its size, which must hold what the header says.
/// Throws Failure{FileCorrupt, Unsupported}: no .npy file; objects, Fortran order, big endian, or no axis.
[[nodiscard]] NpyHeader parse_npy_header(std::string_view begin, std::int64_t file_bytes, const std::string& name);

}  // namespace troupe::detail
