#include <array>
#include <nlohmann/json.hpp>
#include <troupe/errors.hpp>
#include <troupe/foreign.hpp>
#include <troupe/safetensors.hpp>
#include <utility>

#include "../safetensors_json.hpp"
#include "flatten.hpp"
#include "mapped_file.hpp"
#include "tensor_shape.hpp"

namespace troupe {
namespace {

namespace fs = std::filesystem;

constexpr std::size_t kMaxIndexBytes = 100'000'000;

constexpr std::array<std::pair<SafetensorsDtype, TorchDtype>, 19> kTypes{{
    {SafetensorsDtype::BOOL, TorchDtype::boolean},
    {SafetensorsDtype::U8, TorchDtype::uint8},
    {SafetensorsDtype::I8, TorchDtype::int8},
    {SafetensorsDtype::F8_E5M2, TorchDtype::float8_e5m2},
    {SafetensorsDtype::F8_E4M3, TorchDtype::float8_e4m3fn},
    {SafetensorsDtype::F8_E8M0, TorchDtype::float8_e8m0fnu},
    {SafetensorsDtype::F8_E4M3FNUZ, TorchDtype::float8_e4m3fnuz},
    {SafetensorsDtype::F8_E5M2FNUZ, TorchDtype::float8_e5m2fnuz},
    {SafetensorsDtype::I16, TorchDtype::int16},
    {SafetensorsDtype::U16, TorchDtype::uint16},
    {SafetensorsDtype::F16, TorchDtype::float16},
    {SafetensorsDtype::BF16, TorchDtype::bfloat16},
    {SafetensorsDtype::I32, TorchDtype::int32},
    {SafetensorsDtype::U32, TorchDtype::uint32},
    {SafetensorsDtype::F32, TorchDtype::float32},
    {SafetensorsDtype::C64, TorchDtype::complex64},
    {SafetensorsDtype::F64, TorchDtype::float64},
    {SafetensorsDtype::I64, TorchDtype::int64},
    {SafetensorsDtype::U64, TorchDtype::uint64},
}};

ForeignTensor as_foreign(const SafetensorsFile& file, const SafetensorsEntry& entry,
                         const fs::path& path) {
  const auto refuse = [&](Errc code, const std::string& text) {
    throw Failure{code, path.string() + ": tensor '" + entry.name + "' " + text};
  };
  ForeignTensor out;
  const auto* row = kTypes.begin();
  while (row != kTypes.end() && row->first != entry.dtype) ++row;
  if (row == kTypes.end())
    refuse(Errc::Unsupported,
           "has dtype " + std::string(name(entry.dtype)) + ", which LibTorch does not have");
  out.dtype = row->second;
  for (const auto size : entry.shape) {
    if (size > 1ULL << 56) refuse(Errc::FileCorrupt, "has a size beyond 2^56");
    out.shape.push_back(static_cast<std::int64_t>(size));
  }
  if (!detail::count_elements(out.shape)) refuse(Errc::FileCorrupt, "has an impossible shape");
  out.strides = detail::row_major(out.shape);
  out.storage = file.bytes(entry);
  out.keep = file.mapping();
  return out;
}

ForeignTensors read_bin(const fs::path& file) { return read_torch_contents(file).tensors; }

ForeignTensors read_shards(const fs::path& directory, const fs::path& index_file,
                           ForeignTensors (*read)(const fs::path&)) {
  const auto mapped = detail::map_private(index_file);
  if (mapped.bytes.size() > kMaxIndexBytes)
    throw Failure{Errc::FileCorrupt,
                  index_file.string() + ": is larger than 100 MB, which no index is"};
  const auto index =
      parse_shard_index({reinterpret_cast<const char*>(mapped.bytes.data()), mapped.bytes.size()},
                        index_file.string());
  std::map<std::string, ForeignTensors> shards;
  ForeignTensors out;
  for (const auto& [tensor, shard] : index) {
    if (!shards.contains(shard)) shards[shard] = read(directory / shard);
    const auto found = shards[shard].find(tensor);
    if (found == shards[shard].end()) {
      throw Failure{Errc::FileCorrupt, (directory / shard).string() + ": lacks tensor '" + tensor +
                                           "', which " + index_file.filename().string() +
                                           " promises"};
    }
    out[tensor] = found->second;
  }
  return out;
}

}  // namespace

std::map<std::string, std::string> parse_shard_index(std::string_view json, std::string_view what) {
  const auto refuse = [&](const std::string& text) {
    throw Failure{Errc::FileCorrupt, std::string(what) + ": " + text};
  };
  if (detail::find_invalid_utf8(json) != std::string_view::npos) refuse("is not UTF-8");
  // The strict pull parser goes first: it bounds the depth, which nlohmann::json does not.
  detail::HeaderJson strict{json, what};
  strict.skip_value();
  strict.end();
  const auto document = nlohmann::json::parse(json, nullptr, false);
  if (document.is_discarded()) refuse("is not JSON");
  if (!document.is_object() || !document.contains("weight_map") ||
      !document["weight_map"].is_object())
    refuse("has no 'weight_map'");
  std::map<std::string, std::string> out;
  for (const auto& [tensor, shard] : document["weight_map"].items()) {
    if (!shard.is_string() || !detail::is_plain_file_name(shard.get_ref<const std::string&>()))
      refuse("tensor '" + tensor + "' should name a shard beside the index, not " + shard.dump());
    out[tensor] = shard.get<std::string>();
  }
  return out;
}

ForeignTensors read_safetensors_contents(const fs::path& file) {
  const SafetensorsFile mapped{file};
  ForeignTensors out;
  for (const auto& entry : mapped.tensors())
    out.emplace(entry.name, as_foreign(mapped, entry, file));
  return out;
}

ForeignContents read_torch_contents(const fs::path& file, const PickleOptions& options) {
  const auto pickle = read_torch_file(file, options);
  ForeignContents out;
  detail::flatten(pickle.root, "", out);
  return out;
}

ForeignTensors read_model_weights(const fs::path& directory) {
  if (!fs::is_directory(directory))
    throw Failure{Errc::FileNotFound, directory.string() + ": no such directory"};
  if (const auto file = directory / "model.safetensors"; fs::exists(file))
    return read_safetensors_contents(file);
  if (const auto file = directory / "model.safetensors.index.json"; fs::exists(file))
    return read_shards(directory, file, read_safetensors_contents);
  if (const auto file = directory / "pytorch_model.bin"; fs::exists(file)) return read_bin(file);
  if (const auto file = directory / "pytorch_model.bin.index.json"; fs::exists(file))
    return read_shards(directory, file, read_bin);
  throw Failure{
      Errc::FileNotFound,
      directory.string() +
          ": has neither model.safetensors nor pytorch_model.bin, nor the index.json of either"};
}

}  // namespace troupe
