#pragma once

#include <cstdint>
#include <optional>
#include <string_view>
#include <troupe/foreign_pickle.hpp>

namespace troupe::detail {

/// What a name in a pickle means to us. The names are those that torch 1.6 to 2.11, numpy and
/// collections are known to write; the list is closed.
enum class Meaning : std::uint8_t {
  Mentioned,  ///< may stand as a value (the factory of a defaultdict); calling it is refused
  DataClass,  ///< allowed by PickleOptions::data_classes: kept as PickleKind::Object
  OrderedDict,
  DefaultDict,
  Counter,
  Set,
  Bytes,
  Encode,   ///< _codecs.encode(text, 'latin1'): bytes in protocol 2
  GetAttr,  ///< builtins.getattr, which some Python 3.11 write for members of an enumeration that
            ///< is a data class
  Dtype,
  Device,
  Size,
  Layout,
  StorageType,
  UntypedStorage,
  Tensor2,
  Tensor3,
  Parameter,
  TensorType,   ///< the class of a tensor that has Python attributes
  TypedTensor,  ///< such a tensor; the attributes are left out
  NumpyArray,
  NumpyNdarray,
  NumpyDtype,
  NumpyScalar,
  NumpyBuffer  ///< protocol 5's array
};

struct KnownName {
  Meaning meaning = Meaning::Mentioned;
  TorchDtype dtype = TorchDtype::float32;  ///< of Dtype and StorageType
};

/// Nothing for a name that is not read.
[[nodiscard]] std::optional<KnownName> known_name(std::string_view module,
                                                  std::string_view name) noexcept;
/// numpy's "f4", "<i8"; nothing for what torch has no dtype for and for big-endian numbers.
[[nodiscard]] std::optional<TorchDtype> numpy_dtype(std::string_view code) noexcept;

}  // namespace troupe::detail
