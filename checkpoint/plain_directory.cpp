#include "plain_directory.hpp"

#include "layout.hpp"
#include "safetensors_layout.hpp"

#include <troupe/errors.hpp>

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>
#include <set>

namespace troupe::detail {

namespace {

namespace fs = std::filesystem;

constexpr std::uint64_t kIndexLimit = 256 << 20;
constexpr std::string_view kEnd = ".safetensors", kIndexEnd = ".safetensors.index.json";

SafetensorsHeader read_header(File& file, const std::string& what) {
  const auto size = file.size();
  std::vector<std::byte> head(std::min<std::uint64_t>(size, 8));
  file.read(head, 0);
  if (head.size() == 8) {
    std::uint64_t length = 0;
    for (std::size_t i = 8; i-- > 0;) length = length << 8 | std::to_integer<std::uint64_t>(head[i]);
    if (length <= 100'000'000 && length <= size - 8) {
      head.resize(8 + length);
      file.read(std::span{head}.subspan(8), 8);
    }
  }
  return parse_safetensors_head(head, size, what);
}

void add_file(const fs::path& directory, const std::string& stem, const std::string& name, FileSystem& file_system, Manifest& manifest) {
  const auto file = file_system.open(directory / name, FileSystem::Access::Read);
  const auto header = read_header(*file, name);
  for (const auto& tensor : header.tensors) {
    manifest.tensors.push_back({stem, tensor.name, tensor.dtype, tensor.shape, static_cast<std::uint32_t>(manifest.files.size()),
                                header.data_begin + tensor.begin, tensor.end - tensor.begin});
  }
  manifest.files.push_back({name, file->size(), 0, {}, {}});
}

std::set<std::string> shards_of(const fs::path& directory, const std::string& index, FileSystem& file_system) {
  const auto refuse = [&](const std::string& why) { throw Failure{Errc::FileCorrupt, index + ": " + why}; };
  const auto json = nlohmann::json::parse(file_system.read_all(directory / index, kIndexLimit), nullptr, false);
  if (!json.is_object() || !json.contains("weight_map") || !json["weight_map"].is_object()) refuse("has no object \"weight_map\"");
  std::set<std::string> shards;
  for (const auto& [tensor, shard] : json["weight_map"].items()) {
    if (!shard.is_string() || !is_plain_name(shard.get_ref<const std::string&>()) ||
        shard.get_ref<const std::string&>().find('/') != std::string::npos) {
      refuse("puts tensor '" + tensor + "' into something that is no file beside it");
    }
    shards.insert(shard.get<std::string>());
  }
  return shards;
}

void refuse_doubles(const Manifest& manifest) {
  std::set<std::pair<std::string_view, std::string_view>> names;
  for (const auto& tensor : manifest.tensors) {
    if (names.emplace(tensor.stem, tensor.name).second) continue;
    throw Failure{Errc::FileCorrupt, "tensor '" + tensor.name + "' of '" + tensor.stem + "' is in two files"};
  }
}

/// "model", "model_1", "optimizer", …: what stands before `end` in a file's name.
std::optional<std::string> stem_in(const std::string& name, std::string_view end) {
  if (!name.ends_with(end)) return std::nullopt;
  auto stem = name.substr(0, name.size() - end.size());
  const auto base = stem.substr(0, stem.find('_'));
  const auto number = base.size() < stem.size() ? stem.substr(base.size() + 1) : "1";
  const bool known =
      (base == "model" || base == "optimizer") && !number.empty() && number.find_first_not_of("0123456789") == std::string::npos;
  if (!known) return std::nullopt;
  return stem;
}

}  // namespace

Manifest plain_directory(const fs::path& directory, FileSystem& file_system) {
  std::map<std::string, std::string> stem_of;  // by file
  std::set<std::string> done;
  const auto entries = file_system.list(directory);
  for (const auto& entry : entries) {
    const auto stem = stem_in(entry.name, kIndexEnd);
    if (!stem) continue;
    for (const auto& shard : shards_of(directory, entry.name, file_system)) stem_of.emplace(shard, *stem);
    done.insert(*stem);
  }
  for (const auto& entry : entries) {
    const auto stem = stem_in(entry.name, kEnd);
    if (stem && !done.contains(*stem)) stem_of.emplace(entry.name, *stem);
  }
  Manifest manifest;
  for (const auto& [name, stem] : stem_of) add_file(directory, stem, name, file_system, manifest);
  if (manifest.files.empty()) {
    throw Failure{Errc::FileNotFound,
                  "it has neither " + std::string(manifest_name) + " nor model.safetensors nor model.safetensors.index.json"};
  }
  refuse_doubles(manifest);
  return manifest;
}

}  // namespace troupe::detail
