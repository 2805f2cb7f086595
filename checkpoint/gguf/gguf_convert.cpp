#include <troupe/errors.hpp>
#include <troupe/gguf_convert.hpp>
#include <troupe/safetensors_stream.hpp>

#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <nlohmann/json.hpp>

#include "llama_layout.hpp"

namespace troupe {

namespace {

namespace fs = std::filesystem;
using detail::LlamaTensor;

std::uint16_t to_bf16(float value) {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  if (value != value) return static_cast<std::uint16_t>(bits >> 16 | 0x40);  // stays a NaN
  return static_cast<std::uint16_t>((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);  // to nearest, ties to even
}

std::uint16_t to_half(float value) {
  const auto half = static_cast<_Float16>(value);  // to nearest, ties to even
  return std::bit_cast<std::uint16_t>(half);
}

void store(std::span<const float> row, SafetensorsDtype dtype, std::byte* out) {
  if (dtype == SafetensorsDtype::F32) {
    std::memcpy(out, row.data(), row.size_bytes());
    return;
  }
  for (std::size_t i = 0; i < row.size(); ++i) {
    const auto bits = dtype == SafetensorsDtype::BF16 ? to_bf16(row[i]) : to_half(row[i]);
    std::memcpy(out + 2 * i, &bits, 2);
  }
}

/// One row at a time, so that no float copy of the whole tensor is made. A vector has rows of one element.
void convert_tensor(const GgufFile& file, const LlamaTensor& tensor, std::int64_t head_dim, SafetensorsDtype dtype, std::span<std::byte> out) {
  const auto& source = *tensor.source;
  const auto rows = source.shape[0];
  const auto bytes = file.bytes(source);
  std::vector<float> row(source.elements() / rows);
  const auto in_bytes = bytes.size() / rows, out_bytes = out.size() / rows;
  for (std::uint64_t i = 0; i < rows; ++i) {
    const auto to = tensor.interleaved_heads == 0 ? i : detail::row_without_interleaving(i, static_cast<std::uint64_t>(head_dim));
    dequantize(source.type, bytes.subspan(i * in_bytes, in_bytes), row);
    store(row, dtype, out.data() + to * out_bytes);
  }
}

void write_text(const fs::path& file, const std::string& text) {
  std::ofstream out{file, std::ios::binary};
  if (!(out << text) || !out.flush()) throw Failure{Errc::StorageUnavailable, file.string() + ": cannot write"};
}

/// The directory under another name; removed unless it was renamed.
struct Unfinished {
  fs::path path;
  ~Unfinished() {
    std::error_code ignored;
    if (!path.empty()) fs::remove_all(path, ignored);
  }
};

std::vector<std::vector<LlamaTensor>> shards_of(const std::vector<LlamaTensor>& tensors, std::uint64_t element_bytes, std::uint64_t limit) {
  std::vector<std::vector<LlamaTensor>> shards(1);
  std::uint64_t size = 0;
  for (const auto& tensor : tensors) {
    const auto bytes = tensor.source->elements() * element_bytes;
    if (size > 0 && size + bytes > limit) {
      shards.emplace_back();
      size = 0;
    }
    shards.back().push_back(tensor);
    size += bytes;
  }
  return shards;
}

class Writer {
 public:
  Writer(const GgufFile& file, const detail::LlamaFacts& facts, const GgufConversion& options, fs::path to)
      : file_(file), facts_(facts), options_(options), to_(std::move(to)) {}

  void weights(const std::vector<LlamaTensor>& tensors) {
    const std::uint64_t element = options_.dtype == SafetensorsDtype::F32 ? 4 : 2;
    for (const auto& tensor : tensors) total_ += tensor.source->elements() * element;
    const auto shards = shards_of(tensors, element, options_.max_shard_bytes);
    if (shards.size() == 1) return one_file("model.safetensors", tensors);
    nlohmann::json map = nlohmann::json::object();
    for (std::size_t i = 0; i < shards.size(); ++i) {
      char name[64];
      (void)std::snprintf(name, sizeof name, "model-%05zu-of-%05zu.safetensors", i + 1, shards.size());
      for (const auto& tensor : shards[i]) map[tensor.name] = name;
      one_file(name, shards[i]);
    }
    write_text(to_ / "model.safetensors.index.json", nlohmann::json{{"metadata", {{"total_size", total_}}}, {"weight_map", map}}.dump(2) + "\n");
  }

 private:
  void one_file(const std::string& name, const std::vector<LlamaTensor>& tensors) {
    std::map<std::string, const LlamaTensor*> by_name;
    std::vector<SafetensorsSpec> specs;
    for (const auto& tensor : tensors) {
      by_name[tensor.name] = &tensor;
      specs.push_back({tensor.name, options_.dtype, tensor.source->shape});
    }
    write_safetensors_stream(
        to_ / name, std::move(specs),
        [&](const SafetensorsSpec& spec, std::span<std::byte> out) {
          convert_tensor(file_, *by_name.at(spec.name), facts_.head_dim, options_.dtype, out);
          done_ += out.size();
          if (options_.progress) options_.progress(done_, total_);
        },
        {{"format", "pt"}});
  }

  const GgufFile& file_;
  const detail::LlamaFacts& facts_;
  const GgufConversion& options_;
  fs::path to_;
  std::uint64_t total_ = 0, done_ = 0;
};

}  // namespace

GgufConverted convert_gguf(const fs::path& source, const fs::path& directory, const GgufConversion& options) {
  const auto* dtype = options.dtype == SafetensorsDtype::BF16  ? "bfloat16"
                      : options.dtype == SafetensorsDtype::F16 ? "float16"
                      : options.dtype == SafetensorsDtype::F32 ? "float32"
                                                               : nullptr;
  if (dtype == nullptr) throw Failure{Errc::InvalidArgument, "convert_gguf: weights are written as BF16, F16 or F32"};
  if (options.max_shard_bytes == 0) throw Failure{Errc::InvalidArgument, "convert_gguf: max_shard_bytes is 0"};
  if (fs::exists(fs::symlink_status(directory))) throw Failure{Errc::AlreadyExists, directory.string() + ": is already there"};

  const GgufFile file{source};
  const auto facts = detail::read_llama_facts(file);
  const auto tensors = detail::match_llama_tensors(file, facts);
  auto texts = options.tokenizer ? detail::tokenizer_files(file, facts) : std::map<std::string, std::string>{};
  texts["config.json"] = detail::llama_config_json(file, facts, dtype);
  texts["generation_config.json"] = detail::llama_generation_json(file);

  const auto absolute = fs::absolute(directory / "").parent_path();  // without a slash at its end
  fs::create_directories(absolute.parent_path());
  Unfinished unfinished{absolute.parent_path() / ("." + absolute.filename().string() + ".tmp." + std::to_string(::getpid()))};
  fs::remove_all(unfinished.path);
  fs::create_directory(unfinished.path);
  Writer{file, facts, options, unfinished.path}.weights(tensors);
  for (const auto& [name, text] : texts) write_text(unfinished.path / name, text);
  std::error_code failed;
  fs::rename(unfinished.path, absolute, failed);
  if (failed) throw Failure{Errc::StorageUnavailable, directory.string() + ": cannot rename the finished directory: " + failed.message()};
  unfinished.path.clear();

  GgufConverted out{tensors.size(), 0, {}};
  for (const auto& tensor : tensors) out.num_params += tensor.source->elements();
  for (const auto& entry : fs::directory_iterator{absolute}) out.files.push_back(entry.path().filename().string());
  std::ranges::sort(out.files);
  return out;
}

}  // namespace troupe
