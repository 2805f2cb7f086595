#include <algorithm>
#include <bit>
#include <cstring>
#include <utility>

#include "pickle_reader.hpp"
#include "tensor_shape.hpp"

namespace troupe::detail {
namespace {

constexpr std::size_t kMaxDimensions = 64;

}  // namespace

std::uint32_t PickleReader::make_tensor(ForeignTensor tensor) {
  const auto node = make(NodeKind::Tensor);
  store_.nodes[node].index = store_.tensors.size();
  store_.tensors.push_back(std::move(tensor));
  return node;
}

/// ('storage', torch.FloatStorage, key, location, elements)
void PickleReader::persistent_id() {
  const auto id = tuple_of(pop(), "a persistent id");
  if (id.size() != 5 || text_of(id[0], "a persistent id's kind") != "storage")
    refuse_unsupported("has a persistent id that is no storage");
  const auto meaning = meaning_of(id[1]);
  if (meaning != Meaning::StorageType && meaning != Meaning::UntypedStorage)
    refuse_unsupported("has a storage of an unknown type");
  const auto key = text_of(id[2], "a storage's key");
  const auto elements = integer_of(id[4], "a storage's size");
  if (key.size() > 200) refuse("has a storage whose key is longer than 200 bytes");
  if (!source_) refuse("has a tensor where there are no storages");
  auto loaded = loaded_.find(key);
  if (loaded == loaded_.end()) loaded = loaded_.emplace(std::string(key), source_(key)).first;
  Storage storage;
  storage.bytes = loaded->second;
  if (meaning == Meaning::StorageType) storage.dtype = meanings_[store_.nodes[id[1]].index].dtype;
  const auto item = storage.dtype ? bytes_of(*storage.dtype) : 1;
  storage.elements = storage.bytes.size() / item;
  if (elements < 0 || static_cast<std::uint64_t>(elements) != storage.elements ||
      storage.bytes.size() % item != 0) {
    refuse("claims that storage '" + std::string(key) + "' has " + std::to_string(elements) +
           " elements of " + std::to_string(item) + " bytes, the file has " +
           std::to_string(storage.bytes.size()) + " bytes of it");
  }
  const auto node = make_integer(NodeKind::Storage, static_cast<std::int64_t>(storages_.size()));
  storages_.push_back(storage);
  push(node);
}

/// v2: (storage, offset, size, stride, requires_grad, hooks[, metadata]); v3 has the dtype before
/// the metadata.
std::uint32_t PickleReader::tensor(const Items& arguments, Meaning meaning) {
  const std::size_t metadata = meaning == Meaning::Tensor3 ? 7 : 6;
  if (arguments.size() < 4 || arguments.size() > metadata + 1 ||
      kind(arguments[0]) != NodeKind::Storage)
    refuse("has a tensor whose arguments are malformed");
  if (arguments.size() == metadata + 1 && kind(arguments[metadata]) != NodeKind::None) {
    const auto extra = arguments[metadata];
    if (kind(extra) != NodeKind::Dict || !store_.items(extra).empty())
      refuse_unsupported("has a tensor with extra properties (conjugate or negative view)");
  }
  const auto& storage = storages_[static_cast<std::size_t>(store_.nodes[arguments[0]].integer)];
  auto dtype = storage.dtype;
  if (meaning == Meaning::Tensor3) {
    if (arguments.size() < 7 || kind(arguments[6]) != NodeKind::Dtype)
      refuse("has a tensor without a dtype");
    dtype = static_cast<TorchDtype>(store_.nodes[arguments[6]].integer);
  }
  if (!dtype) refuse("has a tensor without a dtype");
  return make_tensor(view(storage, *dtype, integer_of(arguments[1], "a tensor's offset"),
                          tuple_of(arguments[2], "a tensor's sizes"),
                          tuple_of(arguments[3], "a tensor's strides")));
}

ForeignTensor PickleReader::view(const Storage& storage, TorchDtype dtype, std::int64_t offset,
                                 const Items& sizes, const Items& strides) const {
  if (sizes.size() != strides.size() || sizes.size() > kMaxDimensions)
    refuse("has a tensor with a malformed shape");
  ForeignTensor out;
  out.dtype = dtype;
  const auto item = bytes_of(dtype);
  const auto there = storage.bytes.size() / item;
  for (std::size_t d = 0; d < sizes.size(); ++d) {
    out.shape.push_back(integer_of(sizes[d], "a tensor's size"));
    out.strides.push_back(integer_of(strides[d], "a tensor's stride"));
    if (out.strides.back() < 0) refuse("has a tensor with a negative stride");
  }
  const auto elements = count_elements(out.shape);
  if (!elements) refuse("has a tensor with an impossible shape");
  std::uint64_t last = static_cast<std::uint64_t>(offset);  // index of the last element
  bool fits = offset >= 0 && last <= there;
  for (std::size_t d = 0; d < sizes.size() && *elements > 0; ++d) {
    std::uint64_t step = 0;
    fits = fits &&
           !__builtin_mul_overflow(static_cast<std::uint64_t>(out.shape[d] - 1),
                                   static_cast<std::uint64_t>(out.strides[d]), &step) &&
           !__builtin_add_overflow(last, step, &last);
  }
  if (!fits || (*elements > 0 && last >= there)) {
    refuse("has a tensor that reaches beyond its storage of " + std::to_string(there) +
           " elements");
  }
  if (*elements > there)
    refuse_unsupported("has an expanded tensor, whose elements overlap; save it contiguous");
  if (*elements == 0) out.strides = row_major(out.shape);
  out.offset = static_cast<std::uint64_t>(offset) * item;
  out.storage = storage.bytes;
  out.keep = store_.keep;
  return out;
}

std::uint32_t PickleReader::numpy_type(const Items& arguments) {
  if (arguments.empty()) refuse("has a numpy.dtype without a code");
  const auto code = text_of(arguments[0], "numpy.dtype's code");
  const auto dtype = numpy_dtype(code);
  if (!dtype)
    refuse_unsupported("has a numpy array of dtype '" + std::string(code.substr(0, 20)) +
                       "', which is not read");
  return make_integer(NodeKind::NumpyDtype, static_cast<std::int64_t>(*dtype));
}

/// numpy.float64 and the like become plain numbers.
std::uint32_t PickleReader::numpy_scalar(const Items& arguments) {
  if (arguments.size() != 2 || kind(arguments[0]) != NodeKind::NumpyDtype ||
      kind(arguments[1]) != NodeKind::Bytes)
    refuse("has a malformed numpy scalar");
  const auto dtype = static_cast<TorchDtype>(store_.nodes[arguments[0]].integer);
  const auto text = store_.text(arguments[1]);
  if (text.size() != bytes_of(dtype)) refuse("has a numpy scalar of the wrong size");
  std::uint64_t bits = 0;
  for (auto i = std::min<std::size_t>(text.size(), 8); i-- > 0;)
    bits = bits << 8 | static_cast<unsigned char>(text[i]);
  const auto real = [&](double value) {
    const auto node = make(NodeKind::Float);
    store_.nodes[node].real = value;
    return node;
  };
  switch (dtype) {
    case TorchDtype::float64:
      return real(std::bit_cast<double>(bits));
    case TorchDtype::float32:
      return real(static_cast<double>(std::bit_cast<float>(static_cast<std::uint32_t>(bits))));
    case TorchDtype::boolean:
      return bits != 0 ? true_ : false_;
    case TorchDtype::int64:
      return make_integer(NodeKind::Int, static_cast<std::int64_t>(bits));
    case TorchDtype::int32:
      return make_integer(NodeKind::Int, static_cast<std::int32_t>(bits));
    case TorchDtype::uint32:
      return make_integer(NodeKind::Int, static_cast<std::int64_t>(bits));
    default:
      refuse_unsupported("has a numpy scalar of dtype " + std::string(name(dtype)) +
                         ", which is not read");
  }
}

ForeignTensor PickleReader::numpy_array(std::uint32_t shape, std::uint32_t dtype,
                                        std::uint32_t bytes) const {
  if (kind(dtype) != NodeKind::NumpyDtype || kind(bytes) != NodeKind::Bytes)
    refuse("has a malformed numpy array");
  ForeignTensor out;
  out.dtype = static_cast<TorchDtype>(store_.nodes[dtype].integer);
  const auto& sizes = tuple_of(shape, "numpy.ndarray's shape");
  if (sizes.size() > kMaxDimensions) refuse("has a numpy array with a malformed shape");
  for (const auto size : sizes) out.shape.push_back(integer_of(size, "numpy.ndarray's size"));
  const auto elements = count_elements(out.shape);
  const auto text = store_.text(bytes);
  if (!elements || *elements * bytes_of(out.dtype) != text.size())
    refuse("has a numpy array whose bytes do not fit its shape");
  out.strides = row_major(out.shape);
  count_copy(text.size());
  const auto memory = std::make_shared<std::vector<std::byte>>(text.size());
  if (!text.empty()) std::memcpy(memory->data(), text.data(), text.size());
  out.storage = *memory;
  out.keep = memory;
  return out;
}

}  // namespace troupe::detail
