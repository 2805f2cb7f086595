#include <algorithm>
#include <troupe/errors.hpp>
#include <troupe/foreign.hpp>
#include <utility>

#include "deepspeed_files.hpp"

namespace troupe {
namespace {

namespace fs = std::filesystem;

/// "optimizer_1.bin" → "optimizer_1" when it is `stem`, an optional "_<number>", and `ending`.
bool is_numbered(std::string_view file, std::string_view stem, std::string_view ending) {
  if (!file.starts_with(stem) || !file.ends_with(ending) ||
      file.size() < stem.size() + ending.size())
    return false;
  file.remove_prefix(stem.size());
  file.remove_suffix(ending.size());
  if (file.empty()) return true;
  return file.size() > 1 && file.front() == '_' &&
         std::ranges::all_of(file.substr(1), [](char c) { return c >= '0' && c <= '9'; });
}

std::vector<std::string> names_in(const fs::path& directory) {
  std::vector<std::string> out;
  for (const auto& entry : fs::directory_iterator{directory})
    out.push_back(entry.path().filename().string());
  std::ranges::sort(out);
  return out;
}

/// "model.a.weight" → "a.weight"; FSDP's directories have one root key.
template <class T>
std::map<std::string, T> without_prefix(std::map<std::string, T> from, const std::string& prefix) {
  std::map<std::string, T> out;
  for (auto& [name, value] : from)
    out.emplace(name.starts_with(prefix) ? name.substr(prefix.size()) : name, std::move(value));
  return out;
}

/// "state.<parameter>.exp_avg" → "exp_avg.<parameter>".
template <class T>
std::map<std::string, T> by_moment(std::map<std::string, T> from) {
  std::map<std::string, T> out;
  for (auto& [name, value] : from) {
    const auto last = name.rfind('.');
    const bool state = name.starts_with("state.") && last > 6 && last != std::string::npos;
    out.emplace(state ? name.substr(last + 1) + "." + name.substr(6, last - 6) : name,
                std::move(value));
  }
  return out;
}

class SaveStateReader {
 public:
  explicit SaveStateReader(const fs::path& directory)
      : directory_(directory), names_(names_in(directory)) {}

  ForeignCheckpoint read() {
    out_.format = ForeignFormat::SaveState;
    if (detail::has_deepspeed_files(directory_ / "pytorch_model")) {
      out_ = read_deepspeed(directory_ / "pytorch_model");
      out_.format = ForeignFormat::SaveState;
    }
    for (const auto& name : names_) read_state(name);
    for (const auto& name : names_) read_extra(name);
    if (!out_.sections.contains("model")) read_plain_model();
    out_.found = "a save_state directory of Accelerate" +
                 (out_.found.empty() ? std::string{} : " with " + out_.found);
    return std::move(out_);
  }

 private:
  /// Model and optimizer: what cannot be read is an error.
  void read_state(const std::string& name) {
    const auto path = directory_ / name;
    const auto stem = fs::path{name}.stem().string();
    if (is_numbered(name, "model", ".safetensors") && stem != "model") {
      out_.sections[stem].tensors = read_safetensors_contents(path);
    } else if (is_numbered(name, "pytorch_model", ".bin") && stem != "pytorch_model") {
      out_.sections["model" + stem.substr(13)] = read_torch_contents(path);
    } else if (is_numbered(name, "optimizer", ".bin")) {
      out_.sections[stem] = read_torch_contents(path);
    } else if (name == "pytorch_model_fsdp.bin") {
      out_.sections["model"] = read_torch_contents(path);
    } else if (is_numbered(name, "pytorch_model_fsdp", "") && fs::exists(path / ".metadata")) {
      auto contents = read_dcp(path);
      out_.sections[section("model", name, "pytorch_model_fsdp")].tensors =
          without_prefix(std::move(contents.tensors), "model.");
      out_.found = "FSDP shards";
    } else if (is_numbered(name, "optimizer", "") && fs::exists(path / ".metadata")) {
      auto contents = read_dcp(path);
      auto& into = out_.sections[section("optimizer", name, "optimizer")];
      into.tensors = by_moment(without_prefix(std::move(contents.tensors), "optimizer."));
      into.values = by_moment(without_prefix(std::move(contents.values), "optimizer."));
    }
  }

  /// "pytorch_model_fsdp_0" → "model", "…_1" → "model_1".
  static std::string section(const std::string& word, const std::string& name,
                             std::string_view stem) {
    const auto number = name.substr(stem.size());
    return number.empty() || number == "_0" ? word : word + number;
  }

  /// Everything else, as far as it is numbers and tensors.
  void read_extra(const std::string& name) {
    const bool wanted =
        is_numbered(name, "scheduler", ".bin") || is_numbered(name, "sampler", ".bin") ||
        is_numbered(name, "dl_state_dict", ".bin") || is_numbered(name, "random_states", ".pkl") ||
        is_numbered(name, "custom_checkpoint", ".pkl") || name == "scaler.pt";
    if (!wanted) return;
    try {
      out_.sections[fs::path{name}.stem().string()] = read_torch_contents(directory_ / name);
    } catch (const Failure& failure) {
      if (failure.code() != Errc::Unsupported) throw;
      out_.sections.erase(fs::path{name}.stem().string());
      out_.left_out.emplace_back(failure.what());
    }
  }

  void read_plain_model() { out_.sections["model"].tensors = read_model_weights(directory_); }

  fs::path directory_;
  std::vector<std::string> names_;
  ForeignCheckpoint out_;
};

bool is_save_state(const fs::path& directory) {
  return std::ranges::any_of(names_in(directory), [&](const std::string& name) {
    return is_numbered(name, "optimizer", ".bin") || is_numbered(name, "random_states", ".pkl") ||
           (is_numbered(name, "pytorch_model_fsdp", "") &&
            fs::exists(directory / name / ".metadata")) ||
           name == "pytorch_model_fsdp.bin" ||
           (name == "pytorch_model" && detail::has_deepspeed_files(directory / name));
  });
}

}  // namespace

ForeignCheckpoint read_save_state(const fs::path& directory) {
  if (!fs::is_directory(directory))
    throw Failure{Errc::FileNotFound, directory.string() + ": no such directory"};
  return SaveStateReader{directory}.read();
}

ForeignCheckpoint read_any(const fs::path& directory) {
  if (!fs::is_directory(directory))
    throw Failure{Errc::FileNotFound, directory.string() + ": no such directory"};
  if (detail::has_deepspeed_files(directory)) return read_deepspeed(directory);
  if (is_save_state(directory)) return read_save_state(directory);
  if (fs::exists(directory / "latest")) return read_deepspeed(directory);
  ForeignCheckpoint out;
  if (fs::exists(directory / ".metadata")) {
    out.format = ForeignFormat::Dcp;
    out.found = "a directory of torch.distributed.checkpoint";
    out.sections["model"] = read_dcp(directory);
    return out;
  }
  try {
    out.sections["model"].tensors = read_model_weights(directory);
  } catch (const Failure& failure) {
    if (failure.code() != Errc::FileNotFound ||
        fs::exists(directory / "model.safetensors.index.json") ||
        fs::exists(directory / "pytorch_model.bin.index.json"))
      throw;
    throw Failure{
        Errc::FileNotFound,
        directory.string() +
            ": no checkpoint was found; looked for model.safetensors, pytorch_model.bin, their "
            "index.json, "
            "optimizer.bin (Accelerate), …_optim_states.pt or latest (DeepSpeed), .metadata (DCP)"};
  }
  out.found = "the weights of a Hugging Face directory";
  return out;
}

}  // namespace troupe
