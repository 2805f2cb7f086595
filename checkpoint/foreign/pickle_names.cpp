#include "pickle_names.hpp"

#include <algorithm>
#include <array>

namespace troupe::detail {
namespace {

struct NameRow {
  std::string_view module;
  std::string_view name;
  Meaning meaning;
};

constexpr std::array<NameRow, 40> kNames{{
    {"collections", "OrderedDict", Meaning::OrderedDict},
    {"collections", "defaultdict", Meaning::DefaultDict},
    {"collections", "Counter", Meaning::Counter},
    {"builtins", "set", Meaning::Set},
    {"__builtin__", "set", Meaning::Set},
    {"builtins", "frozenset", Meaning::Set},
    {"__builtin__", "frozenset", Meaning::Set},
    {"builtins", "bytes", Meaning::Bytes},
    {"__builtin__", "bytes", Meaning::Bytes},
    {"builtins", "dict", Meaning::Mentioned},
    {"__builtin__", "dict", Meaning::Mentioned},
    {"builtins", "list", Meaning::Mentioned},
    {"__builtin__", "list", Meaning::Mentioned},
    {"builtins", "int", Meaning::Mentioned},
    {"__builtin__", "int", Meaning::Mentioned},
    {"builtins", "float", Meaning::Mentioned},
    {"__builtin__", "float", Meaning::Mentioned},
    {"builtins", "getattr", Meaning::GetAttr},
    {"__builtin__", "getattr", Meaning::GetAttr},
    {"_codecs", "encode", Meaning::Encode},
    {"torch", "device", Meaning::Device},
    {"torch", "Size", Meaning::Size},
    {"torch.serialization", "_get_layout", Meaning::Layout},
    {"torch", "UntypedStorage", Meaning::UntypedStorage},
    {"torch.storage", "UntypedStorage", Meaning::UntypedStorage},
    {"torch._utils", "_rebuild_tensor", Meaning::Tensor2},
    {"torch._utils", "_rebuild_tensor_v2", Meaning::Tensor2},
    {"torch._utils", "_rebuild_tensor_v3", Meaning::Tensor3},
    {"torch._utils", "_rebuild_parameter", Meaning::Parameter},
    {"torch._tensor", "_rebuild_from_type_v2", Meaning::TypedTensor},
    {"torch", "Tensor", Meaning::TensorType},
    {"torch.nn.parameter", "Parameter", Meaning::TensorType},
    {"numpy.core.multiarray", "_reconstruct", Meaning::NumpyArray},
    {"numpy._core.multiarray", "_reconstruct", Meaning::NumpyArray},
    {"numpy.core.numeric", "_frombuffer", Meaning::NumpyBuffer},
    {"numpy._core.numeric", "_frombuffer", Meaning::NumpyBuffer},
    {"numpy", "ndarray", Meaning::NumpyNdarray},
    {"numpy", "dtype", Meaning::NumpyDtype},
    {"numpy.core.multiarray", "scalar", Meaning::NumpyScalar},
    {"numpy._core.multiarray", "scalar", Meaning::NumpyScalar},
}};

constexpr std::array<std::pair<std::string_view, TorchDtype>, 12> kStorages{{
    {"FloatStorage", TorchDtype::float32},
    {"DoubleStorage", TorchDtype::float64},
    {"HalfStorage", TorchDtype::float16},
    {"BFloat16Storage", TorchDtype::bfloat16},
    {"LongStorage", TorchDtype::int64},
    {"IntStorage", TorchDtype::int32},
    {"ShortStorage", TorchDtype::int16},
    {"CharStorage", TorchDtype::int8},
    {"ByteStorage", TorchDtype::uint8},
    {"BoolStorage", TorchDtype::boolean},
    {"ComplexFloatStorage", TorchDtype::complex64},
    {"ComplexDoubleStorage", TorchDtype::complex128},
}};

constexpr std::array<std::pair<std::string_view, TorchDtype>, 15> kNumpy{{
    {"f2", TorchDtype::float16},
    {"f4", TorchDtype::float32},
    {"f8", TorchDtype::float64},
    {"i1", TorchDtype::int8},
    {"i2", TorchDtype::int16},
    {"i4", TorchDtype::int32},
    {"i8", TorchDtype::int64},
    {"u1", TorchDtype::uint8},
    {"u2", TorchDtype::uint16},
    {"u4", TorchDtype::uint32},
    {"u8", TorchDtype::uint64},
    {"b1", TorchDtype::boolean},
    {"?", TorchDtype::boolean},
    {"c8", TorchDtype::complex64},
    {"c16", TorchDtype::complex128},
}};

}  // namespace

std::optional<KnownName> known_name(std::string_view module, std::string_view name) noexcept {
  for (const auto& row : kNames) {
    if (row.module == module && row.name == name) return KnownName{row.meaning, {}};
  }
  if (module != "torch") return std::nullopt;
  if (const auto dtype = torch_dtype(name)) return KnownName{Meaning::Dtype, *dtype};
  for (const auto& [storage, dtype] : kStorages) {
    if (storage == name) return KnownName{Meaning::StorageType, dtype};
  }
  return std::nullopt;
}

std::optional<TorchDtype> numpy_dtype(std::string_view code) noexcept {
  if (code.starts_with('<') || code.starts_with('|') || code.starts_with('='))
    code.remove_prefix(1);
  const auto row = std::ranges::find(kNumpy, code, &std::pair<std::string_view, TorchDtype>::first);
  return row == kNumpy.end() ? std::nullopt : std::optional{row->second};
}

}  // namespace troupe::detail
