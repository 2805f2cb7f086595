#include "column_tensors.hpp"

#include <troupe/errors.hpp>

#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <arrow/array.h>
#include <arrow/extension_type.h>
#include <arrow/type.h>
#include <arrow/util/bit_util.h>

#include <algorithm>
#include <cstring>
#include <optional>

namespace troupe::detail {

namespace {

[[noreturn]] void unsupported(std::string_view name, const arrow::DataType& type, const std::string& advice) {
  throw Failure{Errc::Unsupported, "column '" + std::string(name) + "' is of type " + type.ToString() + ", which no tensor holds; " + advice};
}

void refuse_nulls(const arrow::Array& array, std::string_view name) {
  if (array.null_count() == 0) return;
  std::int64_t row = 0;
  while (!array.IsNull(row)) ++row;
  throw Failure{Errc::DataMalformed, "column '" + std::string(name) + "' is null in row " + std::to_string(row) + " of the batch; a tensor has no nulls: fill or filter them in a step"};
}

/// What numbers become, and the type that their bytes are of.
struct NumberType {
  at::ScalarType tensor;
  std::int64_t bytes;
};

std::optional<NumberType> number_type(arrow::Type::type type) {
  switch (type) {
    case arrow::Type::INT8: return NumberType{at::kChar, 1};
    case arrow::Type::UINT8: return NumberType{at::kByte, 1};
    case arrow::Type::INT16: return NumberType{at::kShort, 2};
    case arrow::Type::INT32: return NumberType{at::kInt, 4};
    case arrow::Type::INT64: return NumberType{at::kLong, 8};
    case arrow::Type::HALF_FLOAT: return NumberType{at::kHalf, 2};
    case arrow::Type::FLOAT: return NumberType{at::kFloat, 4};
    case arrow::Type::DOUBLE: return NumberType{at::kDouble, 8};
    default: return std::nullopt;
  }
}

template <class From, class To>
void widen(const arrow::Array& array, at::Tensor& tensor) {
  const auto* from = array.data()->GetValues<From>(1);
  std::copy(from, from + array.length(), tensor.data_ptr<To>());
}

/// Values [length] of an array without lists in it.
at::Tensor numbers(const arrow::Array& array, std::string_view name) {
  refuse_nulls(array, name);
  const auto make = [&](at::ScalarType type) { return at::empty({array.length()}, at::TensorOptions().dtype(type)); };
  const auto type = array.type_id();
  if (const auto known = number_type(type)) {
    auto tensor = make(known->tensor);
    if (array.length() > 0) {
      const auto* from = array.data()->buffers[1]->data() + array.offset() * known->bytes;
      std::memcpy(tensor.data_ptr(), from, static_cast<std::size_t>(array.length() * known->bytes));
    }
    return tensor;
  }
  at::Tensor tensor;
  switch (type) {
    case arrow::Type::BOOL: {
      tensor = make(at::kBool);
      const auto& flags = static_cast<const arrow::BooleanArray&>(array);
      for (std::int64_t i = 0; i < array.length(); ++i) tensor.data_ptr<bool>()[i] = flags.Value(i);
      return tensor;
    }
    case arrow::Type::UINT16: widen<std::uint16_t, std::int32_t>(array, tensor = make(at::kInt)); return tensor;
    case arrow::Type::UINT32: widen<std::uint32_t, std::int64_t>(array, tensor = make(at::kLong)); return tensor;
    case arrow::Type::UINT64: {
      const auto* from = array.data()->GetValues<std::uint64_t>(1);
      const auto* large = std::find_if(from, from + array.length(), [](std::uint64_t v) { return v > INT64_MAX; });
      if (large != from + array.length()) throw Failure{Errc::DataMalformed, "column '" + std::string(name) + "' holds " + std::to_string(*large) + ", which is more than an int64 can be"};
      widen<std::uint64_t, std::int64_t>(array, tensor = make(at::kLong));
      return tensor;
    }
    default: unsupported(name, *array.type(), "cast it in a step, or give iter_batches a collate_fn");
  }
}

template <class ListArray>
at::Tensor padded(const ListArray& lists, std::string_view name, const Padding& padding) {
  const std::int64_t rows = lists.length();
  std::int64_t longest = 0;
  for (std::int64_t i = 0; i < rows; ++i) longest = std::max<std::int64_t>(longest, lists.value_length(i));
  if (padding.length > 0) {
    if (longest > padding.length) {
      throw Failure{Errc::DataMalformed, "column '" + std::string(name) + "' has a list of " + std::to_string(longest) + ", but every row is to be " +
                                             std::to_string(padding.length) + " long; truncate in a step"};
    }
    longest = padding.length;
  }
  const auto multiple = std::max<std::int64_t>(1, padding.multiple_of);
  longest = (longest + multiple - 1) / multiple * multiple;
  const auto first = lists.value_offset(0);
  const auto values = numbers(*lists.values()->Slice(first, lists.value_offset(rows) - first), name);
  auto tensor = at::full({rows, longest}, padding.value, values.options());
  const auto width = static_cast<std::size_t>(values.element_size());
  const auto* from = static_cast<const char*>(values.const_data_ptr());
  auto* to = static_cast<char*>(tensor.data_ptr());
  for (std::int64_t i = 0; i < rows; ++i) {
    const auto count = static_cast<std::int64_t>(lists.value_length(i));
    const auto begin = i * longest + (padding.on_left ? longest - count : 0);
    std::memcpy(to + static_cast<std::size_t>(begin) * width, from + static_cast<std::size_t>(lists.value_offset(i) - first) * width, static_cast<std::size_t>(count) * width);
  }
  return tensor;
}

at::Tensor fixed_lists(const arrow::FixedSizeListArray& lists, std::string_view name, const Padding& padding) {
  const std::int64_t each = lists.list_type()->list_size();
  auto values = tensor_of(*lists.values()->Slice(lists.value_offset(0), lists.length() * each), name, padding);
  auto sizes = values.sizes().vec();
  sizes[0] = each;
  sizes.insert(sizes.begin(), lists.length());
  return values.view(sizes);
}

/// An extension (a tensor of one shape) as what it is stored as.
const arrow::Array& storage_of(const arrow::Array& array) {
  return array.type_id() == arrow::Type::EXTENSION ? *static_cast<const arrow::ExtensionArray&>(array).storage() : array;
}

}  // namespace

at::Tensor tensor_of(const arrow::Array& column, std::string_view name, const Padding& padding) {
  const auto& array = storage_of(column);
  refuse_nulls(array, name);
  switch (array.type_id()) {
    case arrow::Type::LIST: return padded(static_cast<const arrow::ListArray&>(array), name, padding);
    case arrow::Type::LARGE_LIST: return padded(static_cast<const arrow::LargeListArray&>(array), name, padding);
    case arrow::Type::FIXED_SIZE_LIST: return fixed_lists(static_cast<const arrow::FixedSizeListArray&>(array), name, padding);
    case arrow::Type::FIXED_SIZE_BINARY: {
      const auto& bytes = static_cast<const arrow::FixedSizeBinaryArray&>(array);
      auto tensor = at::empty({array.length(), bytes.byte_width()}, at::TensorOptions().dtype(at::kByte));
      if (array.length() > 0) std::memcpy(tensor.data_ptr(), bytes.GetValue(0), tensor.nbytes());
      return tensor;
    }
    default: break;
  }
  if (is_text(array)) unsupported(name, *array.type(), "give iter_batches a collate_fn that makes tensors of it, or leave it out (select_columns)");
  return numbers(array, name);
}

at::Tensor lengths_of(const arrow::Array& column, std::string_view name) {
  refuse_nulls(column, name);
  auto tensor = at::empty({column.length()}, at::TensorOptions().dtype(at::kLong));
  auto* to = tensor.data_ptr<std::int64_t>();
  const auto fill = [&](const auto& lists) {
    for (std::int64_t i = 0; i < column.length(); ++i) to[i] = lists.value_length(i);
  };
  switch (column.type_id()) {
    case arrow::Type::LIST: fill(static_cast<const arrow::ListArray&>(column)); break;
    case arrow::Type::LARGE_LIST: fill(static_cast<const arrow::LargeListArray&>(column)); break;
    case arrow::Type::FIXED_SIZE_LIST: fill(static_cast<const arrow::FixedSizeListArray&>(column)); break;
    default: throw Failure{Errc::InvalidArgument, "column '" + std::string(name) + "' is of type " + column.type()->ToString() + ", not of lists"};
  }
  return tensor;
}

bool is_text(const arrow::Array& column) {
  const auto is = [](const arrow::DataType& type) {
    return arrow::is_binary_like(type.id()) || arrow::is_large_binary_like(type.id()) || type.id() == arrow::Type::STRING_VIEW || type.id() == arrow::Type::BINARY_VIEW;
  };
  if (column.type_id() == arrow::Type::DICTIONARY) return is(*static_cast<const arrow::DictionaryType&>(*column.type()).value_type());
  return is(*column.type());
}

std::vector<std::string_view> strings_of(const arrow::Array& column, std::string_view name) {
  if (!is_text(column)) throw Failure{Errc::InvalidArgument, "column '" + std::string(name) + "' is of type " + column.type()->ToString() + ", not text"};
  refuse_nulls(column, name);
  std::vector<std::string_view> texts;
  texts.reserve(static_cast<std::size_t>(column.length()));
  const auto add = [&](const auto& array) {
    for (std::int64_t i = 0; i < array.length(); ++i) texts.push_back(array.GetView(i));
  };
  switch (column.type_id()) {
    case arrow::Type::STRING:
    case arrow::Type::BINARY: add(static_cast<const arrow::BinaryArray&>(column)); break;
    case arrow::Type::LARGE_STRING:
    case arrow::Type::LARGE_BINARY: add(static_cast<const arrow::LargeBinaryArray&>(column)); break;
    case arrow::Type::STRING_VIEW:
    case arrow::Type::BINARY_VIEW: add(static_cast<const arrow::BinaryViewArray&>(column)); break;
    default: {
      const auto& dictionary = static_cast<const arrow::DictionaryArray&>(column);
      const auto words = strings_of(*dictionary.dictionary(), name);
      for (std::int64_t i = 0; i < column.length(); ++i) texts.push_back(words[static_cast<std::size_t>(dictionary.GetValueIndex(i))]);
    }
  }
  return texts;
}

}  // namespace troupe::detail
