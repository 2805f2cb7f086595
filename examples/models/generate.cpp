#include <ATen/TensorOperators.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <c10/core/GradMode.h>

#include <algorithm>
#include <memory>
#include <nlohmann/json.hpp>
#include <troupe/errors.hpp>
#include <troupe/generate.hpp>

#include "decoder.hpp"
#include "json_fields.hpp"
#include "sampling.hpp"

namespace troupe {

namespace {

using Tokens = std::vector<std::int64_t>;

/// Dropout is off while it lives; then every module is as it was.
class Evaluating {
 public:
  explicit Evaluating(torch::nn::Module& model) {
    for (auto& module : model.modules()) modes_.emplace_back(module.get(), module->is_training());
    model.eval();
  }
  ~Evaluating() {
    for (auto& [module, training] : modes_) module->train(training);  // parents first: children then have their own
  }
  Evaluating(const Evaluating&) = delete;
  Evaluating& operator=(const Evaluating&) = delete;

 private:
  std::vector<std::pair<torch::nn::Module*, bool>> modes_;
};

/// Rows of prompts, of equal length by padding on the left.
Batch batch_of(const std::vector<Tokens>& prompts, std::int64_t pad) {
  std::size_t longest = 0, shortest = prompts.front().size();
  for (const auto& p : prompts) {
    longest = std::max(longest, p.size());
    shortest = std::min(shortest, p.size());
  }
  const auto rows = static_cast<std::int64_t>(prompts.size()), length = static_cast<std::int64_t>(longest);
  auto ids_BT = at::full({rows, length}, pad, at::kLong);
  auto mask_BT = at::full({rows, length}, 1, at::kLong);
  for (std::int64_t row = 0; row < rows; ++row) {
    const auto& prompt = prompts[static_cast<std::size_t>(row)];
    const auto pads = length - static_cast<std::int64_t>(prompt.size());
    std::copy(prompt.begin(), prompt.end(), ids_BT.mutable_data_ptr<std::int64_t>() + row * length + pads);
    mask_BT.select(0, row).narrow(0, 0, pads).zero_();
  }
  Batch batch{{"input_ids", ids_BT}};
  if (shortest < longest) batch.set("attention_mask", mask_BT);
  return batch;
}

void check_prompts(const LlamaConfig& config, const std::vector<Tokens>& prompts, const GenerateOptions& options) {
  options.check();
  for (std::size_t row = 0; row < prompts.size(); ++row) {
    const auto where = "generate: prompt " + std::to_string(row);
    if (prompts[row].empty()) throw Failure{Errc::InvalidArgument, where + " is empty; it needs one token at least, the model's first (bos_token_id) say"};
    for (const auto token : prompts[row]) {
      if (token < 0 || token >= config.vocab_size) {
        throw Failure{Errc::InvalidArgument, where + " has the token " + std::to_string(token) + ", outside of the vocabulary of " + std::to_string(config.vocab_size)};
      }
    }
    const auto length = static_cast<std::int64_t>(prompts[row].size()) + options.max_new_tokens;
    if (length > config.max_position_embeddings && config.rope_scaling.rope_type != "dynamic") {
      throw Failure{Errc::InvalidArgument, where + " has " + std::to_string(prompts[row].size()) + " tokens and " + std::to_string(options.max_new_tokens) +
                                               " new ones are wanted, more than this model's context of " + std::to_string(config.max_position_embeddings) +
                                               " (max_position_embeddings)"};
    }
  }
}

/// Rows under way.
class Rows {
 public:
  Rows(const LlamaConfig& config, const std::vector<Tokens>& prompts, const GenerateOptions& options)
      : options_(options), sampler_(options), eos_(options.eos_token_ids.value_or(config.eos_token_ids)), seen_(prompts), ended_(prompts.size()) {
    made_.tokens.resize(prompts.size());
    made_.reasons.resize(prompts.size(), Generated::Reason::MaxNewTokens);
  }
  /// Chooses each row's next token. @param logits of all rows. @return the tokens to go on with.
  const Tokens& advance(std::span<float> logits) {
    const auto vocabulary = logits.size() / seen_.size();
    next_.assign(seen_.size(), 0);
    for (std::size_t row = 0; row < seen_.size(); ++row) {
      next_[row] = seen_[row].back();  // what an ended row is fed does not matter
      if (ended_[row]) continue;
      next_[row] = sampler_.choose(logits.subspan(row * vocabulary, vocabulary), seen_[row]);
      seen_[row].push_back(next_[row]);
      made_.tokens[row].push_back(next_[row]);
      look_for_end(row);
    }
    return next_;
  }
  [[nodiscard]] bool all_ended() const { return std::all_of(ended_.begin(), ended_.end(), [](bool e) { return e; }); }
  [[nodiscard]] Generated take() { return std::move(made_); }

 private:
  void look_for_end(std::size_t row) {
    using Reason = Generated::Reason;
    const auto end = [&](Reason reason) {
      ended_[row] = true;
      made_.reasons[row] = reason;
    };
    const auto token = made_.tokens[row].back();
    if (std::find(eos_.begin(), eos_.end(), token) != eos_.end()) end(Reason::EosToken);
    if (!options_.stop_strings.empty()) {
      const auto text = options_.decode(made_.tokens[row]);
      for (const auto& stop : options_.stop_strings) {
        if (text.find(stop) != std::string::npos) end(Reason::StopString);
      }
    }
    if (options_.on_token && !options_.on_token(static_cast<std::int64_t>(row), token) && !ended_[row]) end(Reason::Callback);
  }

  const GenerateOptions& options_;
  detail::Sampler sampler_;
  Tokens eos_, next_;
  std::vector<Tokens> seen_;
  std::vector<bool> ended_;
  Generated made_;
};

}  // namespace

void GenerateOptions::check() const {
  const auto refuse = [](const std::string& text) { throw Failure{Errc::InvalidConfig, "GenerateOptions: " + text}; };
  if (max_new_tokens < 1) refuse("max_new_tokens = " + std::to_string(max_new_tokens) + " should be 1 or more");
  if (!(temperature > 0)) refuse("temperature = " + std::to_string(temperature) + " should be more than 0; do_sample = false takes the likeliest");
  if (top_k < 0) refuse("top_k = " + std::to_string(top_k) + " should be 0 or more");
  if (!(top_p > 0 && top_p <= 1)) refuse("top_p = " + std::to_string(top_p) + " should be in (0, 1]");
  if (!(repetition_penalty > 0)) refuse("repetition_penalty = " + std::to_string(repetition_penalty) + " should be more than 0");
  if (!stop_strings.empty() && !decode) refuse("stop_strings need `decode`, the tokenizer's");
}

GenerateOptions GenerateOptions::from_pretrained(const std::filesystem::path& directory) {
  GenerateOptions options;
  const auto file = directory / "generation_config.json";
  if (!std::filesystem::exists(file)) return options;
  const auto object = detail::read_json_object(file);
  const auto where = file.string();
  detail::read_number(object, "max_new_tokens", where, options.max_new_tokens);
  detail::read_bool(object, "do_sample", where, options.do_sample);
  detail::read_number(object, "temperature", where, options.temperature);
  detail::read_number(object, "top_k", where, options.top_k);
  detail::read_number(object, "top_p", where, options.top_p);
  detail::read_number(object, "repetition_penalty", where, options.repetition_penalty);
  if (object.contains("eos_token_id")) options.eos_token_ids = detail::read_tokens(object, "eos_token_id", where);
  options.check();
  return options;
}

Generated generate(LlamaForCausalLM& model, const std::vector<Tokens>& prompts, const GenerateOptions& options) {
  const auto& config = model->config();
  check_prompts(config, prompts, options);
  if (prompts.empty()) return {};
  const c10::AutoGradMode no_graph{false};
  const Evaluating evaluating{*model};
  const auto parameters = model->parameters();
  // Ranks gather each layer together: all must make equally many steps.
  const bool gathers = std::any_of(parameters.begin(), parameters.end(), [](const at::Tensor& p) { return p.numel() == 0; });
  const auto batch = batch_of(prompts, config.pad_token_id.value_or(0));
  const auto rows = static_cast<std::int64_t>(prompts.size()), length = batch["input_ids"].size(1);
  const auto type = parameters.front().scalar_type();
  KvCache cache{config, rows, length + options.max_new_tokens, type == at::kBFloat16 ? DType::BF16 : type == at::kHalf ? DType::F16 : DType::F32};
  const auto logits_of = [&](const Batch& b) {
    const LlamaForwardOptions last{.cache = &cache, .logits = LlamaForwardOptions::Logits::Last};
    return model(b, last).logits_BTV.select(1, 0).to(at::TensorOptions().dtype(at::kFloat).device(at::kCPU)).contiguous();
  };
  const auto device = parameters.front().device();
  const auto on_device = [&](at::Tensor t) { return device.is_cpu() ? t : t.to(device); };

  Rows under_way{config, prompts, options};
  Batch first;
  for (const auto& [name, tensor] : batch) first.set(name, on_device(tensor));
  auto logits_BV = logits_of(first);
  std::span<float> logits{logits_BV.mutable_data_ptr<float>(), static_cast<std::size_t>(logits_BV.numel())};
  std::unique_ptr<Decoder> decoder;
  if (!gathers && Decoder::fits(*model, rows)) decoder = std::make_unique<Decoder>(*model, cache);
  for (std::int64_t step = 1;; ++step) {
    const auto& tokens = under_way.advance(logits);
    if (step == options.max_new_tokens || (under_way.all_ended() && !gathers)) break;
    if (decoder) {
      logits = decoder->step(tokens);
      continue;
    }
    auto ids_B1 = at::empty({rows, 1}, at::kLong);
    std::copy(tokens.begin(), tokens.end(), ids_B1.mutable_data_ptr<std::int64_t>());
    logits_BV = logits_of({{"input_ids", on_device(ids_B1)}});
    logits = {logits_BV.mutable_data_ptr<float>(), static_cast<std::size_t>(logits_BV.numel())};
  }
  return under_way.take();
}

}  // namespace troupe
