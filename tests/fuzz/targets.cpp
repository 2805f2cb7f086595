#include "targets.hpp"

#include <memory>
#include <span>
#include <troupe/errors.hpp>
#include <troupe/foreign.hpp>
#include <troupe/gguf.hpp>
#include <troupe/safetensors.hpp>

#include "../../checkpoint/foreign/dcp_metadata.hpp"
#include "../../checkpoint/foreign/flatten.hpp"

namespace troupe::fuzz {
namespace {

template <class F>
int tolerant(F&& act) {
  try {
    act();
  } catch (const Failure&) {
  }
  return 0;
}

/// The input in memory of its own: reading past its end is then found by AddressSanitizer.
std::shared_ptr<std::vector<std::byte>> copy_of(const std::uint8_t* data, std::size_t size) {
  const auto* const first = reinterpret_cast<const std::byte*>(data);
  return std::make_shared<std::vector<std::byte>>(first, first + size);
}

void use(const PickleFile& file) {
  ForeignContents contents;
  detail::flatten(file.root, "", contents);
  std::size_t left = 1 << 20;  // bytes to copy: many names may share one storage
  for (const auto& [name, tensor] : contents.tensors) {
    const auto bytes = tensor.elements() * bytes_of(tensor.dtype);
    if (bytes > tensor.storage.size()) __builtin_trap();
    if (bytes > left) continue;
    left -= bytes;
    if (contiguous_bytes(tensor).size() != bytes) __builtin_trap();
  }
}

}  // namespace

int safetensors(const std::uint8_t* data, std::size_t size) {
  return tolerant([&] {
    const auto bytes = copy_of(data, size);
    const auto header = parse_safetensors(*bytes, "fuzz");
    for (const auto& tensor : header.tensors) {
      if (tensor.begin > tensor.end || header.data_begin + tensor.end > size) __builtin_trap();
    }
  });
}

int torch_file(const std::uint8_t* data, std::size_t size) {
  return tolerant([&] {
    const auto bytes = copy_of(data, size);
    PickleOptions options;
    options.verify_crc = false;
    use(read_torch_bytes(*bytes, bytes, "fuzz", options));
  });
}

int pickle(const std::uint8_t* data, std::size_t size) {
  return tolerant([&] {
    const auto bytes = copy_of(data, size);
    PickleOptions options;
    options.data_classes = {"x.", "deepspeed.", "torch.distributed.checkpoint."};
    use(read_pickle_bytes(*bytes, bytes, "fuzz", options));
  });
}

int dcp_metadata(const std::uint8_t* data, std::size_t size) {
  return tolerant([&] {
    const auto bytes = copy_of(data, size);
    (void)detail::parse_dcp_metadata(*bytes, "fuzz");
  });
}

int gguf(const std::uint8_t* data, std::size_t size) {
  return tolerant([&] {
    const auto bytes = copy_of(data, size);
    const auto header = parse_gguf(*bytes, "fuzz");
    for (const auto& tensor : header.tensors) {
      if (tensor.begin > size || tensor.bytes > size - tensor.begin) __builtin_trap();
      std::vector<float> values(tensor.elements());  // at most two a byte
      dequantize(tensor.type, std::span{*bytes}.subspan(tensor.begin, tensor.bytes), values);
    }
  });
}

int shard_index(const std::uint8_t* data, std::size_t size) {
  return tolerant([&] {
    const auto bytes = copy_of(data, size);
    const auto index =
        parse_shard_index({reinterpret_cast<const char*>(bytes->data()), size}, "fuzz");
    for (const auto& [tensor, file] : index) {
      if (!detail::is_plain_file_name(file)) __builtin_trap();
    }
  });
}

const std::vector<Target>& targets() {
  static const std::vector<Target> all{{"safetensors", safetensors},
                                       {"torch_file", torch_file},
                                       {"pickle", pickle},
                                       {"dcp_metadata", dcp_metadata},
                                       {"shard_index", shard_index},
                                       {"gguf", gguf},
                                       {"manifest", manifest},
                                       {"rank_file", rank_file}};
  return all;
}

}  // namespace troupe::fuzz
