#include <troupe/errors.hpp>
#include <troupe/model_size.hpp>
#include <troupe/safetensors.hpp>

#include <algorithm>
#include <cctype>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <vector>

namespace troupe {

namespace fs = std::filesystem;

namespace {

using Json = nlohmann::json;

constexpr std::uintmax_t max_json_bytes = 100'000'000;  // as safetensors limits its own header

/// An object, or nothing when there is no such file.
std::optional<Json> read_json(const fs::path& file) {
  if (!fs::is_regular_file(file)) return std::nullopt;
  if (fs::file_size(file) > max_json_bytes) throw Failure{Errc::FileCorrupt, file.string() + ": is larger than 100 MB"};
  std::ifstream in{file, std::ios::binary};
  auto json = Json::parse(in, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object()) throw Failure{Errc::FileCorrupt, file.string() + ": is no JSON object"};
  return json;
}

std::vector<fs::path> files_of(const fs::path& model) {
  if (fs::is_regular_file(model)) return {model};
  if (!fs::is_directory(model)) throw Failure{Errc::FileNotFound, model.string() + ": there is no such model directory or file"};
  const auto index_file = model / "model.safetensors.index.json";
  const auto index = read_json(index_file);
  if (!index) {
    if (fs::is_regular_file(model / "model.safetensors")) return {model / "model.safetensors"};
    throw Failure{Errc::FileNotFound, model.string() + ": has no model.safetensors and no model.safetensors.index.json"};
  }
  const auto map = index->find("weight_map");
  if (map == index->end() || !map->is_object()) throw Failure{Errc::FileCorrupt, index_file.string() + ": has no weight_map"};
  std::set<std::string> names;
  for (const auto& [tensor, file] : map->items()) {
    if (!file.is_string() || file.get<std::string>() != fs::path{file.get<std::string>()}.filename()) {
      throw Failure{Errc::FileCorrupt, index_file.string() + ": " + tensor + " is in no file of this directory"};
    }
    names.insert(file.get<std::string>());
  }
  std::vector<fs::path> files;
  for (const auto& name : names) files.push_back(model / name);
  return files;
}

/// "encoder.layer.3" of "encoder.layer.3.output.dense.weight"; "" for what is in no numbered layer.
std::string layer_of(const std::string& tensor) {
  for (std::size_t from = 0; from < tensor.size();) {
    const auto dot = tensor.find('.', from);
    if (dot == std::string::npos) return {};
    const auto word = tensor.substr(from, dot - from);
    from = dot + 1;
    if (word != "layer" && word != "layers" && word != "h" && word != "blocks") continue;
    const auto end = tensor.find('.', from);
    if (end == std::string::npos || end == from) continue;
    const auto digit = [](unsigned char c) { return std::isdigit(c) != 0; };
    if (std::all_of(tensor.begin() + static_cast<std::ptrdiff_t>(from), tensor.begin() + static_cast<std::ptrdiff_t>(end), digit)) return tensor.substr(0, end);
  }
  return {};
}

bool is_floating(SafetensorsDtype dtype) {
  const auto text = name(dtype);
  return text.starts_with("F") || text == "BF16";
}

}  // namespace

ModelSize read_model_size(const fs::path& model, std::int64_t persistence_threshold) {
  ModelSize size;
  std::map<std::string, std::int64_t> layers;
  for (const auto& file : files_of(model)) {
    const SafetensorsFile opened{file};
    for (const auto& tensor : opened.tensors()) {
      if (!is_floating(tensor.dtype)) continue;
      std::int64_t count = 1;
      for (const auto dim : tensor.shape) count *= static_cast<std::int64_t>(dim);
      size.num_params += count;
      const auto layer = layer_of(tensor.name);
      if (layer.empty()) {
        size.root_unit += count;
      } else {
        layers[layer] += count;
        if (count <= persistence_threshold) size.num_persistent += count;
      }
    }
  }
  for (const auto& [name, count] : layers) size.largest_unit = std::max(size.largest_unit, count);
  size.num_units = static_cast<int>(layers.size()) + 1;
  return size;
}

std::optional<std::int64_t> read_hidden_size(const fs::path& model) {
  const auto config = read_json(model / "config.json");
  if (!config) return std::nullopt;
  if (const auto one = config->find("hidden_size"); one != config->end() && one->is_number_integer()) return one->get<std::int64_t>();
  std::optional<std::int64_t> largest;
  if (const auto many = config->find("hidden_sizes"); many != config->end() && many->is_array()) {
    for (const auto& size : *many) {
      if (size.is_number_integer()) largest = std::max(largest.value_or(0), size.get<std::int64_t>());
    }
  }
  return largest;
}

}  // namespace troupe
