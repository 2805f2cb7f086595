#include "layout.hpp"

#include "digest.hpp"
#include "safetensors_layout.hpp"

#include <troupe/errors.hpp>

#include <algorithm>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <numeric>

namespace troupe::detail {

namespace {

using Indices = std::vector<std::size_t>;

[[noreturn]] void refuse(const SharedTensorFile& file, const std::string& text) {
  throw Failure{Errc::InvalidArgument, "checkpoint file '" + file.stem + "': " + text};
}

void check_names(const SharedTensorFile& file) {
  if (!is_plain_name(file.stem) || file.stem.find('/') != std::string::npos) refuse(file, "the stem is no good as a file name");
  std::vector<std::string_view> names;
  for (const auto& tensor : file.tensors) {
    if (tensor.name == "__metadata__") refuse(file, "tensor '__metadata__' has a reserved name");
    names.push_back(tensor.name);
  }
  std::ranges::sort(names);
  if (const auto twice = std::ranges::adjacent_find(names); twice != names.end()) {
    refuse(file, "tensor '" + std::string(*twice) + "' is there twice");
  }
}

std::vector<std::uint64_t> sizes_of(const SharedTensorFile& file) {
  std::vector<std::uint64_t> sizes;
  std::uint64_t total = 0;
  for (const auto& tensor : file.tensors) {
    const auto bytes = tensor_bytes(tensor.dtype, tensor.shape);
    if (!bytes || __builtin_add_overflow(total, *bytes, &total) || total >> 62) {
      refuse(file, "tensor '" + tensor.name + "' has a size that no file can have");
    }
    sizes.push_back(*bytes);
  }
  return sizes;
}

/// As Hugging Face splits: in the given order, a new file when the next tensor would exceed the limit.
std::vector<Indices> split(const std::vector<std::uint64_t>& sizes, std::uint64_t limit) {
  std::vector<Indices> shards;
  std::uint64_t filled = 0;
  for (std::size_t i = 0; i < sizes.size(); ++i) {
    if (limit && sizes[i] > limit) {
      shards.insert(shards.end() - (filled ? 1 : 0), Indices{i});  // alone; the open one goes on
      continue;
    }
    if (!filled || (limit && filled + sizes[i] > limit)) {
      shards.emplace_back();
      filled = 0;
    }
    shards.back().push_back(i);
    filled += std::max<std::uint64_t>(sizes[i], 1);
  }
  if (shards.empty()) shards.emplace_back();
  return shards;
}

std::string shard_name(const std::string& stem, std::size_t i, std::size_t count) {
  if (count == 1) return stem + ".safetensors";
  char number[64];
  std::snprintf(number, sizeof number, "-%05zu-of-%05zu.safetensors", i + 1, count);
  return stem + number;
}

void lay_out_shard(const SharedTensorFile& file, const std::vector<std::uint64_t>& sizes, Indices members, const std::string& name,
                   Layout& layout) {
  std::ranges::sort(members, [&](std::size_t a, std::size_t b) {
    return lies_before(file.tensors[a].dtype, file.tensors[a].name, file.tensors[b].dtype, file.tensors[b].name);
  });
  std::vector<SafetensorsEntry> entries;
  std::uint64_t at = 0;
  for (const auto i : members) {
    entries.push_back({file.tensors[i].name, file.tensors[i].dtype, file.tensors[i].shape, at, at + sizes[i]});
    layout.places[i] = {static_cast<std::uint32_t>(layout.files.size()), at, sizes[i]};
    at += sizes[i];
  }
  auto header = safetensors_header(entries, file.metadata, File::page_bytes, "checkpoint file '" + name + "'");
  for (const auto i : members) layout.places[i].begin += header.size();
  layout.files.push_back({name, header.size() + at, std::move(header)});
}

std::string index_of(const SharedTensorFile& file, const std::vector<std::uint64_t>& sizes, const Layout& layout) {
  nlohmann::json map = nlohmann::json::object();
  for (std::size_t i = 0; i < file.tensors.size(); ++i) map[file.tensors[i].name] = layout.files[layout.places[i].file].name;
  const auto total = std::accumulate(sizes.begin(), sizes.end(), std::uint64_t{0});
  return nlohmann::json{{"metadata", {{"total_size", total}}}, {"weight_map", std::move(map)}}.dump(2) + "\n";
}

}  // namespace

Layout lay_out(const SharedTensorFile& file) {
  check_names(file);
  const auto sizes = sizes_of(file);
  Layout layout;
  layout.places.resize(file.tensors.size());
  const auto shards = split(sizes, file.max_shard_bytes);
  for (std::size_t i = 0; i < shards.size(); ++i) lay_out_shard(file, sizes, shards[i], shard_name(file.stem, i, shards.size()), layout);
  if (shards.size() > 1) {
    layout.index_name = file.stem + ".safetensors.index.json";
    layout.index = index_of(file, sizes, layout);
  }
  std::string all;
  for (const auto& laid_out : layout.files) all += laid_out.name + "\n" + laid_out.header;
  layout.digest = digest_of(std::string_view{all});
  return layout;
}

bool is_plain_name(std::string_view name) noexcept {
  if (name.empty() || name.size() > 4096) return false;
  for (const unsigned char c : name) {
    if (c < 0x20 || c == 0x7F || c == '\\') return false;
  }
  while (true) {
    const auto end = name.find('/');
    const auto part = name.substr(0, end);
    if (part.empty() || part == "." || part == "..") return false;
    if (end == std::string_view::npos) return true;
    name.remove_prefix(end + 1);
  }
}

}  // namespace troupe::detail
