#include "checkpoint_commands.hpp"
#include "checkpoint_text.hpp"
#include "elements.hpp"

#include <troupe/errors.hpp>

#include <algorithm>
#include <array>
#include <cstdio>
#include <fstream>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <sstream>

namespace troupe::tools {

namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

struct Options {
  std::string directory, out;
  std::string dtype;
  std::string model = "model";
};

// Beside the weights, what Hugging Face's tools read.
bool is_wanted(const std::string& name) {
  constexpr std::array<const char*, 13> names{"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json", "added_tokens.json",
                                              "vocab.txt", "vocab.json", "merges.txt", "preprocessor_config.json", "chat_template.jinja", "modules.json"};
  return std::find(names.begin(), names.end(), name) != names.end() || (name.ends_with(".model") && name.find('/') == std::string::npos);
}

std::string read_text(const fs::path& file) {
  std::ostringstream text;
  text << std::ifstream{file, std::ios::binary}.rdbuf();
  return text.str();
}

void write_text(const fs::path& file, const std::string& text) {
  std::ofstream out{file, std::ios::binary};
  if (!(out << text) || !out.flush()) throw Failure{Errc::StorageUnavailable, "cannot write " + file.string()};
}

std::optional<SafetensorsDtype> wanted_dtype(const Options& o) {
  if (o.dtype.empty()) return std::nullopt;
  return o.dtype == "bf16" ? SafetensorsDtype::BF16 : o.dtype == "fp16" ? SafetensorsDtype::F16 : SafetensorsDtype::F32;
}

bool is_float(SafetensorsDtype dtype) {
  return dtype == SafetensorsDtype::F32 || dtype == SafetensorsDtype::F64 || dtype == SafetensorsDtype::F16 || dtype == SafetensorsDtype::BF16;
}

/// A model on its way to `out_`. Weights keep the files they lie in; memory: one of those.
class Export {
 public:
  Export(const Options& o, const CheckpointReader& reader, fs::path out) : o_(o), reader_(reader), out_(std::move(out)), dtype_(wanted_dtype(o)) {}

  void weights() {
    std::map<std::uint32_t, std::vector<const StoredTensor*>> by_file;
    for (const auto& tensor : reader_.manifest().tensors) {
      if (tensor.stem == o_.model) by_file[tensor.file].push_back(&tensor);
    }
    if (by_file.empty()) throw Failure{Errc::NotFound, o_.directory + " has no model '" + o_.model + "'; it has: " + stems()};
    Json map = Json::object();
    for (const auto& [file, tensors] : by_file) {
      // "model_1-00001-of-00002.safetensors" is written as "model-00001-of-00002.safetensors": that is what is looked for.
      const auto name = "model" + reader_.manifest().files[file].name.substr(o_.model.size());
      for (const auto* tensor : tensors) map[tensor->name] = name;
      one_file(name, tensors);
    }
    if (by_file.size() > 1) write_text(out_ / "model.safetensors.index.json", Json{{"metadata", {{"total_size", total_}}}, {"weight_map", map}}.dump(2) + "\n");
  }

  void others() {
    for (const auto& entry : fs::directory_iterator{reader_.directory()}) {
      const auto name = entry.path().filename().string();
      if (!entry.is_regular_file() || entry.is_symlink() || !is_wanted(name)) continue;
      if (reader_.has_manifest()) reader_.verify(name);
      write_text(out_ / name, name == "config.json" ? config(entry.path()) : read_text(entry.path()));
      copied_.push_back(name);
    }
  }

  void report() {
    std::sort(copied_.begin(), copied_.end());
    std::string list;
    for (const auto& name : copied_) list += ", " + name;
    std::printf("%s: %s of weights in %s%s\n", o_.out.c_str(), size_text(total_).c_str(), count_text(files_, "file").c_str(), list.c_str());
    if (std::find(copied_.begin(), copied_.end(), "config.json") == copied_.end()) {
      std::printf("there is no config.json in the checkpoint: transformers will ask for one\n");
    }
  }

 private:
  std::string stems() const {
    std::string list;
    for (const auto& stem : reader_.stems()) list += (list.empty() ? "" : ", ") + stem;
    return list;
  }

  void one_file(const std::string& name, const std::vector<const StoredTensor*>& tensors) {
    std::vector<std::vector<std::byte>> bytes(tensors.size());
    std::vector<SafetensorsItem> items;
    for (std::size_t i = 0; i < tensors.size(); ++i) {
      const auto& tensor = *tensors[i];
      bytes[i].resize(tensor.bytes);
      const ReadRange range{tensor.name, 0, bytes[i]};
      reader_.read(o_.model, std::span{&range, 1});
      auto dtype = tensor.dtype;
      if (dtype_ && is_float(dtype) && dtype != *dtype_) {
        bytes[i] = converted(dtype, bytes[i]);
        dtype = *dtype_;
      }
      total_ += bytes[i].size();
      items.push_back({tensor.name, dtype, tensor.shape, bytes[i]});
    }
    write_safetensors_file(out_ / name, std::move(items), {{"format", "pt"}});
    ++files_;
  }

  std::vector<std::byte> converted(SafetensorsDtype from, const std::vector<std::byte>& bytes) const {
    const auto size = bits_of(from) / 8, new_size = bits_of(*dtype_) / 8;
    std::vector<std::byte> made(bytes.size() / size * new_size);
    std::vector<double> numbers;
    constexpr std::size_t chunk = 1 << 16;
    for (std::size_t begin = 0; begin < bytes.size() / size; begin += chunk) {
      const auto count = std::min(chunk, bytes.size() / size - begin);
      decode(from, std::span{bytes}.subspan(begin * size, count * size), numbers);
      encode(*dtype_, numbers, std::span{made}.subspan(begin * new_size, count * new_size));
    }
    return made;
  }

  // config.json says what type the weights have.
  std::string config(const fs::path& file) const {
    const auto text = read_text(file);
    if (!dtype_) return text;
    auto json = Json::parse(text, nullptr, false);
    if (!json.is_object()) throw Failure{Errc::FileCorrupt, file.string() + " is no JSON object"};
    const char* type = *dtype_ == SafetensorsDtype::BF16 ? "bfloat16" : *dtype_ == SafetensorsDtype::F16 ? "float16" : "float32";
    json[json.contains("dtype") ? "dtype" : "torch_dtype"] = type;
    return json.dump(2) + "\n";
  }

  const Options& o_;
  const CheckpointReader& reader_;
  fs::path out_;
  std::optional<SafetensorsDtype> dtype_;
  std::vector<std::string> copied_;
  std::uint64_t total_ = 0, files_ = 0;
};

int run(const Options& o) {
  const auto reader = open_checkpoint(o.directory);
  if (fs::exists(o.out)) throw Failure{Errc::AlreadyExists, o.out + " exists already; name a directory that does not"};
  const auto partial = fs::path{o.out + ".partial"};
  std::error_code error;
  fs::remove_all(partial, error);
  if (!fs::create_directories(partial, error)) throw Failure{Errc::StorageUnavailable, "cannot make " + partial.string() + ": " + error.message()};
  Export made{o, reader, partial};
  try {
    made.weights();
    made.others();
  } catch (...) {
    fs::remove_all(partial, error);
    throw;
  }
  fs::rename(partial, o.out);  // whole or not at all
  made.report();
  return 0;
}

}  // namespace

Command add_export(CLI::App& app) {
  auto options = std::make_shared<Options>();
  auto& o = *options;
  auto* command = app.add_subcommand("export", "Writes only what Hugging Face tools need: weights, config, tokenizer");
  command->add_option("DIR", o.directory, "a checkpoint")->required();
  command->add_option("OUT", o.out, "directory to make")->required();
  command->add_option("--dtype", o.dtype, "convert floating-point weights, rounded to nearest; default: as they are")->check(CLI::IsMember({"bf16", "fp16", "fp32"}));
  command->add_option("--model", o.model, "which, where several were saved: model, model_1, …")->capture_default_str();
  return [options] { return run(*options); };
}

}  // namespace troupe::tools
