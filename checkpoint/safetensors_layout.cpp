#include "safetensors_layout.hpp"

#include <troupe/errors.hpp>

#include <limits>
#include <nlohmann/json.hpp>

namespace troupe::detail {

namespace {

constexpr std::size_t kMaxHeaderBytes = 100'000'000;  // readers refuse longer ones

std::string quoted(const std::string& text, const std::string& what) {
  try {
    return nlohmann::json(text).dump();
  } catch (const nlohmann::json::exception& error) {
    throw Failure{Errc::InvalidArgument, what + ": a tensor's name or the metadata is not UTF-8: " + error.what()};
  }
}

// By hand: an ordered JSON object looks for each key among all before it.
std::string json_of(std::span<const SafetensorsEntry> tensors, const std::map<std::string, std::string>& metadata,
                    const std::string& what) {
  std::string text = "{";
  const auto key = [&](const std::string& name) {
    if (text.back() != '{') text += ',';
    text += quoted(name, what) + ":";
  };
  if (!metadata.empty()) {
    key("__metadata__");
    text += '{';
    for (const auto& [name, value] : metadata) {
      key(name);
      text += quoted(value, what);
    }
    text += '}';
  }
  for (const auto& tensor : tensors) {
    key(tensor.name);
    text += R"({"dtype":")" + std::string(name(tensor.dtype)) + R"(","shape":[)";
    for (std::size_t i = 0; i < tensor.shape.size(); ++i) text += (i ? "," : "") + std::to_string(tensor.shape[i]);
    text += R"(],"data_offsets":[)" + std::to_string(tensor.begin) + "," + std::to_string(tensor.end) + "]}";
  }
  return text + "}";
}

}  // namespace

std::optional<std::uint64_t> tensor_bytes(SafetensorsDtype dtype, const std::vector<std::uint64_t>& shape) noexcept {
  std::uint64_t bits = bits_of(dtype);
  for (const auto size : shape) {
    if (__builtin_mul_overflow(bits, size, &bits)) return std::nullopt;
  }
  if (bits % 8 != 0 || bits / 8 > static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max())) return std::nullopt;
  return bits / 8;
}

std::string safetensors_header(std::span<const SafetensorsEntry> tensors, const std::map<std::string, std::string>& metadata,
                               std::size_t alignment, const std::string& what) {
  auto text = json_of(tensors, metadata, what);
  text.resize((8 + text.size() + alignment - 1) / alignment * alignment - 8, ' ');
  if (text.size() > kMaxHeaderBytes) {
    throw Failure{Errc::InvalidArgument, what + ": its header would have " + std::to_string(text.size()) + " bytes, readers accept " +
                                             std::to_string(kMaxHeaderBytes) + "; split it (max_shard_size)"};
  }
  std::string length(8, '\0');
  for (std::size_t i = 0; i < 8; ++i) length[i] = static_cast<char>(text.size() >> (8 * i) & 0xFF);
  return length + text;
}

}  // namespace troupe::detail
