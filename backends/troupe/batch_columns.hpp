#pragma once

#include <troupe/data/tensor_dict.hpp>

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace arrow {
class RecordBatch;
}

namespace troupe {

/// How lists of different lengths become one tensor.
struct Padding {
  double value = 0;              ///< behind the shorter ones
  std::int64_t multiple_of = 1;  ///< the length is rounded up to this
  std::int64_t length = 0;       ///< of every row: a longer list is an error; 0: the batch's longest
  bool on_left = false;
};
/// By column; what is not named is padded with 0 to the longest.
using ColumnPadding = std::map<std::string, Padding, std::less<>>;

/// The rows of one batch as columns: what a collate function makes tensors of.
///
/// Threads: any. Errors: Failure{NotFound} that lists the columns there are; Failure{DataMalformed} naming column and row of a null.
class BatchColumns {
 public:
  explicit BatchColumns(std::shared_ptr<arrow::RecordBatch> rows, ColumnPadding padding = {});

  [[nodiscard]] std::int64_t num_rows() const;
  [[nodiscard]] std::vector<std::string> names() const;
  [[nodiscard]] bool has(std::string_view column) const;
  /// The column as a tensor of its own memory: numbers [B], lists of n numbers each [B, n] (and lists of such lists), lists of any length [B, longest]
  /// with `padding`. Unsigned integers that LibTorch computes badly with are widened. Failure{Unsupported} for text and types without a tensor.
  [[nodiscard]] at::Tensor tensor(std::string_view column) const;
  /// Lengths [B] of a column of lists, for attention masks.
  [[nodiscard]] at::Tensor lengths(std::string_view column) const;
  /// Text or bytes, row by row; valid as long as this object.
  [[nodiscard]] std::vector<std::string_view> strings(std::string_view column) const;
  /// All columns as tensors. Ray's and this iterator's default; for one with text Failure{Unsupported} that says what to do.
  [[nodiscard]] Batch to_batch() const;
  [[nodiscard]] const std::shared_ptr<arrow::RecordBatch>& rows() const noexcept { return rows_; }

 private:
  std::shared_ptr<arrow::RecordBatch> rows_;
  ColumnPadding padding_;
};

}  // namespace troupe
