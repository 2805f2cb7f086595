#pragma once

#include <troupe/batch_columns.hpp>

#include <string_view>

namespace arrow {
class Array;
}

namespace troupe::detail {

/// A column's values in memory of their own, as BatchColumns::tensor says.
[[nodiscard]] at::Tensor tensor_of(const arrow::Array& column, std::string_view name, const Padding& padding);
[[nodiscard]] at::Tensor lengths_of(const arrow::Array& column, std::string_view name);
[[nodiscard]] std::vector<std::string_view> strings_of(const arrow::Array& column, std::string_view name);
/// Text, bytes, or a dictionary of them.
[[nodiscard]] bool is_text(const arrow::Array& column);

}  // namespace troupe::detail
