#include <ATen/TensorOperators.h>
#include <ATen/ops/zeros.h>
#include <c10/core/GradMode.h>
#include <c10/util/StringUtil.h>

#include <algorithm>
#include <map>
#include <mutex>
#include <nlohmann/json.hpp>
#include <set>
#include <troupe/errors.hpp>
#include <troupe/foreign.hpp>
#include <troupe/llama.hpp>
#include <troupe/parameter_source.hpp>
#include <troupe/tensor_files.hpp>

#include "json_fields.hpp"
#include "llama_layer.hpp"
#include "llama_types.hpp"

namespace troupe {

namespace {

namespace fs = std::filesystem;

constexpr const char* words_name = "model.embed_tokens.weight";
constexpr const char* head_name = "lm_head.weight";

/// A directory's tensors; rows of a larger vocabulary that the files lack are the mean of those there.
class LlamaSource final : public ParameterSource {
 public:
  LlamaSource(const fs::path& directory, const LlamaConfig& config, std::int64_t rows_there)
      : source_(directory_source(directory)), tied_(config.tie_word_embeddings), row_(config.hidden_size), rows_there_(rows_there) {}

  void read(const std::string& name, std::int64_t first, const at::Tensor& values) const override {
    const auto& stored = tied_ && name == head_name ? words_name : name;
    const auto there = stored == words_name || stored == head_name ? rows_there_ * row_ : first + values.numel();
    const auto count = std::clamp<std::int64_t>(there - first, 0, values.numel());
    if (count > 0) source_->read(stored, first, values.narrow(0, 0, count));
    if (count == values.numel()) return;
    const c10::AutoGradMode no_graph{false};
    const auto mean_D = mean_of(stored).to(values.options());
    for (auto at = count; at < values.numel();) {
      const auto column = (first + at) % row_;
      const auto n = std::min(row_ - column, values.numel() - at);
      values.narrow(0, at, n).copy_(mean_D.narrow(0, column, n));
      at += n;
    }
  }

  std::string fingerprint() const override { return source_->fingerprint(); }

 private:
  at::Tensor mean_of(const std::string& name) const {
    const std::scoped_lock lock{mutex_};
    auto& mean = means_[name];
    if (mean.defined()) return mean;
    const c10::AutoGradMode no_graph{false};
    auto sum_D = at::zeros({row_}, at::kDouble);
    const auto window = at::zeros({std::min<std::int64_t>(rows_there_, 1024) * row_}, at::kFloat);
    for (std::int64_t row = 0; row < rows_there_; row += 1024) {
      const auto part = window.narrow(0, 0, std::min<std::int64_t>(1024, rows_there_ - row) * row_);
      source_->read(name, row * row_, part);
      sum_D += part.view({-1, row_}).sum(0, false, at::kDouble);
    }
    return mean = sum_D / rows_there_;
  }

  std::shared_ptr<const ParameterSource> source_;
  bool tied_;
  std::int64_t row_, rows_there_;
  mutable std::mutex mutex_;
  mutable std::map<std::string, at::Tensor> means_;
};

/// Every parameter has its tensor, of its shape, and every tensor its parameter. @return rows of the embedding there.
std::int64_t check_tensors(const torch::nn::Module& model, const LlamaConfig& config, const ForeignTensors& tensors, const fs::path& directory) {
  const auto refuse = [&](const std::string& text) { throw Failure{Errc::FileCorrupt, directory.string() + ": " + text}; };
  std::set<std::string> known;
  std::int64_t rows = config.vocab_size;
  for (const auto& item : model.named_parameters()) {
    const auto& name = item.key();
    known.insert(name);
    if (config.tie_word_embeddings && name == head_name) continue;
    const auto found = tensors.find(name);
    if (found == tensors.end()) refuse("lacks the tensor '" + name + "' of shape " + c10::str(item.value().sizes()));
    auto sizes = found->second.shape;
    if (name == words_name && sizes.size() == 2) rows = std::min(rows, sizes[0]);
    const bool vocabulary = name == words_name || name == head_name;
    if (vocabulary && sizes.size() == 2 && sizes[0] == rows) sizes[0] = config.vocab_size;  // fewer rows are filled up
    if (sizes != item.value().sizes().vec()) {
      refuse("tensor '" + name + "' has shape " + c10::str(c10::IntArrayRef{found->second.shape}) + ", config.json wants " + c10::str(item.value().sizes()));
    }
  }
  for (const auto& [name, tensor] : tensors) {
    if (known.contains(name) || name.ends_with("rotary_emb.inv_freq")) continue;
    refuse("has the tensor '" + name + "', which a Llama of this config.json has not");
  }
  return rows;
}

}  // namespace

LlamaForCausalLM LlamaForCausalLM::from_pretrained(const fs::path& directory, const PretrainedOptions& options) {
  if (!fs::is_directory(directory)) throw Failure{Errc::FileNotFound, directory.string() + ": no such directory"};
  auto config = LlamaConfig::from_file(directory / "config.json");
  const auto published = config.vocab_size;
  if (options.vocab_size != 0 && options.vocab_size < published) {
    throw Failure{Errc::InvalidArgument, directory.string() + ": has a vocabulary of " + std::to_string(published) + "; it cannot shrink to " +
                                             std::to_string(options.vocab_size)};
  }
  if (options.vocab_size != 0) config.vocab_size = options.vocab_size;
  const auto dtype = options.dtype.value_or(config.dtype);
  const std::shared_ptr<Impl> model{new Impl{config, dtype, /*deferred=*/true, Impl::Empty{}}};
  const auto rows = check_tensors(*model, config, read_model_weights(directory), directory);
  if (rows < published) {
    throw Failure{Errc::FileCorrupt, directory.string() + ": tensor '" + words_name + "' has " + std::to_string(rows) + " rows, config.json a vocabulary of " +
                                         std::to_string(published)};
  }
  model->set_parameter_source(std::make_shared<LlamaSource>(directory, config, rows));
  if (!options.deferred) {
    materialize(*model);
    model->set_parameter_source(nullptr);
  }
  return LlamaForCausalLM{model};
}

void LlamaForCausalLMImpl::save_pretrained(const fs::path& directory, std::uint64_t max_shard_bytes) const {
  if (unit_hooks()) throw Failure{Errc::InvalidArgument, "save_pretrained: an Accelerator shards this model; use accelerator.save_model and config().save"};
  std::vector<std::pair<std::string, at::Tensor>> tensors;
  for (const auto& item : named_parameters()) {
    if (item.key().find(".lora_") != std::string::npos) {
      throw Failure{Errc::InvalidArgument, "save_pretrained: the model has adapters; merge_and_unload() them, or save_adapter()"};
    }
    if (config_.tie_word_embeddings && item.key() == head_name) continue;
    tensors.emplace_back(item.key(), item.value().detach());
  }
  std::error_code error;
  fs::create_directories(directory, error);
  if (error) throw Failure{Errc::StorageUnavailable, directory.string() + ": cannot be made: " + error.message()};
  auto config = config_;
  const auto type = tensors.front().second.scalar_type();
  config.dtype = type == at::kBFloat16 ? DType::BF16 : type == at::kHalf ? DType::F16 : type == at::kDouble ? DType::F64 : DType::F32;
  detail::write_shards(directory, tensors, max_shard_bytes);
  config.save(directory / "config.json");
}

namespace detail {

void write_shards(const fs::path& directory, const std::vector<std::pair<std::string, at::Tensor>>& tensors, std::uint64_t max_shard_bytes) {
  std::vector<std::vector<std::pair<std::string, at::Tensor>>> shards(1);
  std::uint64_t filled = 0, total = 0;
  for (const auto& item : tensors) {
    const auto bytes = item.second.nbytes();
    if (max_shard_bytes != 0 && filled > 0 && filled + bytes > max_shard_bytes) {
      shards.emplace_back();
      filled = 0;
    }
    shards.back().push_back(item);
    filled += bytes;
    total += bytes;
  }
  if (shards.size() == 1) {
    write_safetensors(directory / "model.safetensors", tensors);
    fs::remove(directory / "model.safetensors.index.json");
    return;
  }
  nlohmann::ordered_json index{{"metadata", {{"total_size", total}}}, {"weight_map", nlohmann::ordered_json::object()}};
  const auto five = [](std::size_t n) {
    const auto digits = std::to_string(n);
    return std::string(digits.size() < 5 ? 5 - digits.size() : 0, '0') + digits;
  };
  for (std::size_t s = 0; s < shards.size(); ++s) {
    const auto file = "model-" + five(s + 1) + "-of-" + five(shards.size()) + ".safetensors";
    write_safetensors(directory / file, shards[s]);
    for (const auto& [name, tensor] : shards[s]) index["weight_map"][name] = file;
  }
  write_json(directory / "model.safetensors.index.json", index);
  fs::remove(directory / "model.safetensors");
}

}  // namespace detail

}  // namespace troupe
