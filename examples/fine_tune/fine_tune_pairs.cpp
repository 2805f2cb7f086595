#include <troupe/accelerator.hpp>
#include <troupe/bert.hpp>
#include <troupe/fine_tune_pairs.hpp>
#include <troupe/mrpc.hpp>
#include <troupe/pair_dataset.hpp>
#include <troupe/pair_scores.hpp>

#include <ATen/core/grad_mode.h>
#include <ATen/ops/argmax.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <utility>

namespace troupe {

namespace {

using Clock = std::chrono::steady_clock;

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

/// Accuracy, F1 of label 1 and mean loss over the whole evaluation split; the same numbers on every rank.
Metrics evaluate(Accelerator& accelerator, BertForSequenceClassification& model, DataLoader& loader) {
  at::NoGradGuard no_grad;
  model->eval();
  PairScores scores;
  double loss_sum = 0;
  std::int64_t batches = 0;
  for (const auto& batch : loader) {
    const auto scope = accelerator.autocast();
    const auto output = model(batch);
    const auto predicted = accelerator.gather_for_metrics(at::argmax(output.logits_BC, -1));
    const auto labels = accelerator.gather_for_metrics(batch["labels"]);
    scores.add(predicted, labels);
    loss_sum += accelerator.reduce(output.loss.to(at::kFloat), ReduceOp::Mean).item<double>();
    ++batches;
  }
  model->train();
  return {{"accuracy", scores.accuracy()}, {"f1", scores.f1()}, {"eval_loss", loss_sum / static_cast<double>(batches)}};
}

/// A vocabulary that is longer than the model's embedding belongs to another model.
void check_vocabulary(const WordPiece& tokenizer, const BertForSequenceClassification& model, const std::filesystem::path& directory) {
  const auto known = model->config().vocab_size;
  if (std::cmp_greater(tokenizer.vocab_size(), known)) {
    throw Failure{Errc::InvalidConfig, (directory / "vocab.txt").string() + " has " + std::to_string(tokenizer.vocab_size()) +
                                           " tokens, but the model's vocab_size is " + std::to_string(known)};
  }
}

/// Tells the display where training stands.
struct Meter {
  TrainContext& context;
  Progress now;
  Clock::time_point last = Clock::now();

  void step(double loss, std::int64_t samples) {
    const auto time = Clock::now();
    const std::chrono::duration<double> took = time - last;
    last = time;
    now.step += 1;
    now.loss = loss;
    const auto rate = static_cast<double>(samples) / took.count();
    now.samples_per_s = now.samples_per_s == 0 ? rate : 0.9 * now.samples_per_s + 0.1 * rate;
    context.progress(now);
  }
};

}  // namespace

void fine_tune_pairs(TrainContext& context, const Config& config) {
  const auto epochs = config.get<int>("num_train_epochs");
  const auto batch_size = config.get<std::int64_t>("per_device_train_batch_size");
  const auto max_grad_norm = config.get<double>("max_grad_norm");
  const auto seed = config.get<std::uint64_t>("seed");
  const std::filesystem::path model_directory = config.get<std::string>("model");
  AcceleratorOptions options{.mixed_precision = precision_from(config.get<std::string>("mixed_precision")),
                             .gradient_accumulation_steps = config.get<int>("gradient_accumulation_steps")};
  if (const auto file = config.get<std::string>("deepspeed"); !file.empty()) {
    options.deepspeed_plugin = DeepSpeedPlugin::from_json(file);
    options.hidden_sizes = {BertConfig::from_file(model_directory / "config.json").hidden_size};
  }
  Accelerator accelerator{context, options};
  const int accumulation = accelerator.config() ? accelerator.config()->gradient_accumulation_steps : options.gradient_accumulation_steps;

  set_seed(seed);
  auto model = BertForSequenceClassification::from_pretrained(model_directory);
  set_seed(seed, true, context.world_rank());  // from here on every rank drops other units
  const auto data = load_pairs(config.get<std::string>("data"), config.get<std::string>("train_file"),
                               config.get<std::string>("eval_file"));
  const auto tokenizer = WordPiece::from_pretrained(model_directory);
  check_vocabulary(tokenizer, model, model_directory);
  const auto max_length = static_cast<std::size_t>(config.get<std::int64_t>("max_length"));
  const auto collate = collate_pairs(tokenizer.pad_id());
  DataLoader train{encode(tokenizer, data.train, max_length), {.batch_size = batch_size, .shuffle = true, .seed = seed, .collate = collate}};
  DataLoader eval{encode(tokenizer, data.eval, max_length),
                  {.batch_size = config.get<std::int64_t>("per_device_eval_batch_size"), .collate = collate}};

  AdamW optimizer{parameter_groups(model, config.get<double>("weight_decay")), {.lr = config.get<double>("learning_rate")}};
  accelerator.prepare(model, optimizer, train, eval);
  const auto updates = epochs * ((train.size() + accumulation - 1) / accumulation);
  const auto warmup_steps = config.get<std::int64_t>("num_warmup_steps");
  auto scheduler = get_linear_schedule_with_warmup(
      optimizer, warmup_steps >= 0 ? warmup_steps : std::llround(config.get<double>("warmup_ratio") * static_cast<double>(updates)), updates);
  accelerator.prepare(scheduler);
  if (const auto checkpoint = context.get_checkpoint()) accelerator.load_state(checkpoint->path());

  const auto report = [&](const Metrics& metrics) {
    const auto checkpoint = accelerator.checkpoint();
    if (accelerator.is_main_process()) {
      model->config().save(checkpoint.path() / "config.json");
      tokenizer.save(checkpoint.path());
    }
    context.report(metrics, checkpoint);
  };
  Meter meter{context, {.num_epochs = epochs, .step = train.epoch() * train.size(), .num_steps = epochs * train.size()}};
  for (auto epoch = train.epoch(); epoch < epochs; epoch = train.epoch()) {
    meter.now.epoch = static_cast<int>(epoch) + 1;
    double loss_sum = 0;
    std::int64_t steps = 0;
    for (const auto& batch : train) {
      const auto window = accelerator.accumulate();
      at::Tensor loss;
      {
        const auto scope = accelerator.autocast();
        loss = model(batch).loss;
      }
      accelerator.backward(loss);
      if (max_grad_norm > 0) accelerator.clip_grad_norm(model->parameters(), max_grad_norm);
      optimizer.step();
      scheduler.step();
      optimizer.zero_grad();
      loss_sum += loss.item<double>();
      meter.step(loss_sum / static_cast<double>(++steps), train.total_batch_size());
      // Interrupted or preempted: the next start goes on with the next batch.
      if (accelerator.sync_gradients() && context.should_stop()) return report({{"epoch", epoch + 1}});
    }
    auto metrics = evaluate(accelerator, model, eval);
    metrics.set({"epoch", epoch + 1});
    metrics.set({"loss", loss_sum / static_cast<double>(std::max<std::int64_t>(steps, 1))});
    report(metrics);
  }
}

}  // namespace troupe
