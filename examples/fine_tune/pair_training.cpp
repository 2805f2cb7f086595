#include "pair_training.hpp"

#include <cmath>
#include <utility>

namespace troupe {

namespace {

/// No decay on biases and LayerNorm weights, as the BERT papers have it.
std::vector<ParamGroup> parameter_groups(const BertForSequenceClassification& model, double weight_decay) {
  std::vector<ParamGroup> groups(2);
  groups[0].weight_decay = weight_decay;
  groups[1].weight_decay = 0;
  for (const auto& parameter : model->named_parameters()) {
    const bool plain = parameter.key().ends_with("bias") || parameter.key().find("LayerNorm") != std::string::npos;
    groups[plain].params.push_back(parameter.value());
  }
  return groups;
}

AcceleratorOptions accelerator_options(const Config& config) {
  AcceleratorOptions options{.mixed_precision = precision_from(config.get<std::string>("mixed_precision")),
                             .gradient_accumulation_steps = config.get<int>("gradient_accumulation_steps")};
  if (const auto file = config.get<std::string>("deepspeed"); !file.empty()) {
    options.deepspeed_plugin = DeepSpeedPlugin::from_json(file);
    options.hidden_sizes = {BertConfig::from_file(std::filesystem::path{config.get<std::string>("model")} / "config.json").hidden_size};
  }
  return options;
}

BertForSequenceClassification load_model(const TrainContext& context, const Config& config) {
  const auto seed = config.get<std::uint64_t>("seed");
  set_seed(seed);
  auto model = BertForSequenceClassification::from_pretrained(config.get<std::string>("model"));
  set_seed(seed, true, context.world_rank());  // from here on every rank drops other units
  return model;
}

/// A vocabulary that is longer than the model's embedding belongs to another model.
WordPiece load_tokenizer(const Config& config, const BertForSequenceClassification& model) {
  const std::filesystem::path directory = config.get<std::string>("model");
  auto tokenizer = WordPiece::from_pretrained(directory);
  const auto known = model->config().vocab_size;
  if (std::cmp_greater(tokenizer.vocab_size(), known)) {
    throw Failure{Errc::InvalidConfig, (directory / "vocab.txt").string() + " has " + std::to_string(tokenizer.vocab_size()) +
                                           " tokens, but the model's vocab_size is " + std::to_string(known)};
  }
  return tokenizer;
}

}  // namespace

PairTraining::PairTraining(TrainContext& with, const Config& config)
    : context(with),
      epochs(config.get<int>("num_train_epochs")),
      batch_size(config.get<std::int64_t>("per_device_train_batch_size")),
      eval_batch_size(config.get<std::int64_t>("per_device_eval_batch_size")),
      max_length(config.get<std::int64_t>("max_length")),
      seed(config.get<std::uint64_t>("seed")),
      accelerator(with, accelerator_options(config)),
      model(load_model(with, config)),
      tokenizer(load_tokenizer(config, model)),
      optimizer(parameter_groups(model, config.get<double>("weight_decay")), {.lr = config.get<double>("learning_rate")}),
      config_(config),
      accumulation_(accelerator.config() ? accelerator.config()->gradient_accumulation_steps : config.get<int>("gradient_accumulation_steps")),
      max_grad_norm_(config.get<double>("max_grad_norm")) {}

void PairTraining::begin(std::int64_t steps, const std::function<std::int64_t()>& epoch) {
  // The schedule counts updates, of all epochs.
  const auto updates = epochs * ((steps + accumulation_ - 1) / accumulation_);
  const auto warmup = config_.get<std::int64_t>("num_warmup_steps");
  scheduler_.emplace(get_linear_schedule_with_warmup(
      optimizer, warmup >= 0 ? warmup : std::llround(config_.get<double>("warmup_ratio") * static_cast<double>(updates)), updates));
  accelerator.prepare(*scheduler_);
  if (const auto checkpoint = context.get_checkpoint()) accelerator.load_state(checkpoint->path());
  shown_ = {.num_epochs = epochs, .step = epoch() * steps, .num_steps = epochs * steps};
  last_step_ = std::chrono::steady_clock::now();
}

void PairTraining::step(const Batch& batch) {
  const auto window = accelerator.accumulate();
  at::Tensor loss;
  {
    const auto scope = accelerator.autocast();
    loss = model(batch).loss;
  }
  accelerator.backward(loss);
  if (max_grad_norm_ > 0) accelerator.clip_grad_norm(model->parameters(), max_grad_norm_);
  optimizer.step();
  scheduler_->step();
  optimizer.zero_grad();
  loss_sum_ += loss.item<double>();

  const auto now = std::chrono::steady_clock::now();
  const std::chrono::duration<double> took = now - std::exchange(last_step_, now);
  const auto rate = static_cast<double>(batch_size * context.world_size()) / took.count();
  shown_.step += 1;
  shown_.loss = loss_sum_ / static_cast<double>(++steps_);
  shown_.samples_per_s = shown_.samples_per_s == 0 ? rate : 0.9 * shown_.samples_per_s + 0.1 * rate;
  context.progress(shown_);
}

void PairTraining::report(const Metrics& metrics) {
  const auto checkpoint = accelerator.checkpoint();
  if (accelerator.is_main_process()) {
    model->config().save(checkpoint.path() / "config.json");
    tokenizer.save(checkpoint.path());
  }
  context.report(metrics, checkpoint);
}

}  // namespace troupe
