#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>

#include <algorithm>
#include <array>
#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>
#include <set>
#include <troupe/errors.hpp>
#include <troupe/safetensors.hpp>
#include <troupe/tensor_files.hpp>

namespace troupe {
namespace {

namespace fs = std::filesystem;

constexpr std::array<std::pair<SafetensorsDtype, at::ScalarType>, 19> kTypes{{
    {SafetensorsDtype::F32, at::kFloat},
    {SafetensorsDtype::BF16, at::kBFloat16},
    {SafetensorsDtype::F16, at::kHalf},
    {SafetensorsDtype::F64, at::kDouble},
    {SafetensorsDtype::I64, at::kLong},
    {SafetensorsDtype::I32, at::kInt},
    {SafetensorsDtype::I16, at::kShort},
    {SafetensorsDtype::I8, at::kChar},
    {SafetensorsDtype::U8, at::kByte},
    {SafetensorsDtype::BOOL, at::kBool},
    {SafetensorsDtype::C64, at::kComplexFloat},
    {SafetensorsDtype::U16, at::kUInt16},
    {SafetensorsDtype::U32, at::kUInt32},
    {SafetensorsDtype::U64, at::kUInt64},
    {SafetensorsDtype::F8_E4M3, at::kFloat8_e4m3fn},
    {SafetensorsDtype::F8_E5M2, at::kFloat8_e5m2},
    {SafetensorsDtype::F8_E8M0, at::kFloat8_e8m0fnu},
    {SafetensorsDtype::F8_E4M3FNUZ, at::kFloat8_e4m3fnuz},
    {SafetensorsDtype::F8_E5M2FNUZ, at::kFloat8_e5m2fnuz},
}};

at::Tensor as_tensor(const SafetensorsFile& file, const SafetensorsEntry& entry,
                     const fs::path& path) {
  const auto refuse = [&](const std::string& text) {
    throw Failure{Errc::FileCorrupt, path.string() + ": tensor '" + entry.name + "' " + text};
  };
  const auto row =
      std::ranges::find(kTypes, entry.dtype, &std::pair<SafetensorsDtype, at::ScalarType>::first);
  if (row == kTypes.end())
    refuse("has dtype " + std::string(name(entry.dtype)) + ", which LibTorch does not have");
  std::vector<std::int64_t> shape;
  for (const auto size : entry.shape) {
    if (size > static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max()))
      refuse("has a size beyond 2^63-1");
    shape.push_back(static_cast<std::int64_t>(size));
  }
  const auto bytes = file.bytes(entry);
  if (bytes.empty()) return at::empty(shape, row->second);
  return at::from_blob(
      bytes.data(), shape, [keep = file.mapping()](void*) {}, row->second);
}

/// A shard's name comes from a file: it must be a name in the same directory.
bool is_plain_file_name(const std::string& name) {
  return !name.empty() && name != "." && name != ".." && name.find('/') == std::string::npos &&
         name.find('\0') == std::string::npos;
}

constexpr std::uintmax_t kMaxIndexBytes = 100'000'000;

/// Tensor name → shard file name.
std::map<std::string, std::string> read_index(const fs::path& file) {
  const auto refuse = [&](const std::string& text) {
    throw Failure{Errc::FileCorrupt, file.string() + ": " + text};
  };
  if (fs::file_size(file) > kMaxIndexBytes) refuse("is larger than 100 MB, which no index is");
  std::ifstream in{file, std::ios::binary};
  const auto json = nlohmann::json::parse(in, nullptr, false);
  if (json.is_discarded()) refuse("is not JSON");
  if (!json.is_object() || !json.contains("weight_map") || !json["weight_map"].is_object())
    refuse("has no 'weight_map'");
  std::map<std::string, std::string> out;
  for (const auto& [tensor, shard] : json["weight_map"].items()) {
    if (!shard.is_string() || !is_plain_file_name(shard.get<std::string>())) {
      refuse("tensor '" + tensor + "' should name a shard beside the index, not " + shard.dump());
    }
    out[tensor] = shard.get<std::string>();
  }
  return out;
}

TensorMap read_shards(const fs::path& directory, const fs::path& index_file) {
  const auto index = read_index(index_file);
  std::map<std::string, TensorMap> shards;
  for (const auto& [tensor, shard] : index) {
    if (!shards.contains(shard)) shards[shard] = read_safetensors(directory / shard);
  }
  TensorMap out;
  for (const auto& [tensor, shard] : index) {
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

at::ScalarType torch_dtype_of(SafetensorsDtype dtype) {
  const auto row =
      std::ranges::find(kTypes, dtype, &std::pair<SafetensorsDtype, at::ScalarType>::first);
  if (row != kTypes.end()) return row->second;
  throw Failure{Errc::Unsupported,
                "LibTorch has no element type " + std::string(name(dtype)) + " of safetensors"};
}

SafetensorsDtype safetensors_dtype_of(at::ScalarType type) {
  const auto row =
      std::ranges::find(kTypes, type, &std::pair<SafetensorsDtype, at::ScalarType>::second);
  if (row != kTypes.end()) return row->first;
  throw Failure{Errc::Unsupported,
                std::string("safetensors has no element type ") + c10::toString(type)};
}

TensorMap read_safetensors(const fs::path& file) {
  const SafetensorsFile mapped{file};
  TensorMap out;
  for (const auto& entry : mapped.tensors())
    out.emplace(entry.name, as_tensor(mapped, entry, file));
  return out;
}

TensorMap read_model_directory(const fs::path& directory) {
  if (!fs::is_directory(directory))
    throw Failure{Errc::FileNotFound, directory.string() + ": no such directory"};
  const auto whole = directory / "model.safetensors";
  const auto index = directory / "model.safetensors.index.json";
  if (fs::exists(whole)) return read_safetensors(whole);
  if (fs::exists(index)) return read_shards(directory, index);
  const bool pickled = fs::exists(directory / "pytorch_model.bin");
  throw Failure{
      Errc::FileNotFound,
      directory.string() + ": has neither model.safetensors nor model.safetensors.index.json" +
          (pickled ? "; convert pytorch_model.bin with save_pretrained(safe_serialization=True)"
                   : "")};
}

void write_safetensors(const fs::path& file,
                       const std::vector<std::pair<std::string, at::Tensor>>& tensors,
                       const std::map<std::string, std::string>& metadata) {
  std::vector<at::Tensor> alive;
  std::vector<SafetensorsItem> items;
  for (const auto& [tensor_name, tensor] : tensors) {
    if (!tensor.defined())
      throw Failure{Errc::InvalidArgument,
                    file.string() + ": tensor '" + tensor_name + "' is undefined"};
    const auto row = std::ranges::find(kTypes, tensor.scalar_type(),
                                       &std::pair<SafetensorsDtype, at::ScalarType>::second);
    if (row == kTypes.end()) {
      throw Failure{Errc::InvalidArgument,
                    file.string() + ": tensor '" + tensor_name + "' has dtype " +
                        c10::toString(tensor.scalar_type()) + ", which safetensors does not have"};
    }
    alive.push_back(tensor.detach().cpu().contiguous());
    const auto sizes = alive.back().sizes();
    items.push_back(
        {tensor_name,
         row->first,
         {sizes.begin(), sizes.end()},
         {static_cast<const std::byte*>(alive.back().const_data_ptr()), alive.back().nbytes()}});
  }
  auto with_format = metadata;
  with_format.try_emplace("format", "pt");
  write_safetensors_file(file, std::move(items), with_format);
}

}  // namespace troupe
