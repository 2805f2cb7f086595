#include <troupe/errors.hpp>
#include <troupe/llama_finetune.hpp>
#include <troupe/token_dataset.hpp>

#include <ATen/core/Tensor.h>

#include <algorithm>
#include <cstdio>
#include <filesystem>

#include "loop_parts.hpp"
#include "setup.hpp"

namespace troupe {

namespace {

namespace fs = std::filesystem;
using detail::FinetuneData;

DataLoader train_loader(const LlamaFinetuneOptions& o, const FinetuneData& data) {
  if (o.group_by_length) {
    return {grouped_dataset(data.train, o.batch_size_per_device, data.pad_id, o.seed), {.batch_size = 1, .shuffle = true, .seed = o.seed, .collate = collate_grouped}};
  }
  return {row_dataset(data.train), {.batch_size = o.batch_size_per_device, .shuffle = true, .seed = o.seed, .collate = collate_rows(data.pad_id)}};
}

/// One rank's run: what is prepared, and how it trains, evaluates and reports.
class Finetune {
 public:
  Finetune(TrainContext& context, const LlamaFinetuneOptions& options, const LlamaConfig& config)
      : context_(context),
        o_(options),
        config_(config),
        accelerator_(context, detail::accelerator_options(o_, config_)),
        data_(*context.keep<FinetuneData>("data", [&] { return std::make_shared<FinetuneData>(detail::read_finetune_data(o_, config_)); })),
        model_(seeded_model()),
        optimizer_(trainable_parameters(*model_), {.lr = o_.lr > 0 ? o_.lr : o_.lora ? 1e-4 : 5e-6, .weight_decay = o_.weight_decay}),
        loader_(train_loader(o_, data_)) {
    if (!o_.no_grad_ckpt) set_activation_checkpointing(*model_, true);
    accelerator_.prepare(model_, optimizer_, loader_);
    const auto accumulation = accelerator_.config() ? accelerator_.config()->gradient_accumulation_steps : o_.grad_accum;
    per_epoch_ = (loader_.size() + accumulation - 1) / accumulation;
    total_ = o_.as_test ? 1 : o_.max_steps > 0 ? o_.max_steps : o_.num_epochs * per_epoch_;
  }

  void run() {
    auto scheduler = get_linear_schedule_with_warmup(optimizer_, std::min(o_.num_warmup_steps, total_ - 1), total_);
    accelerator_.prepare(scheduler);
    if (const auto checkpoint = context_.get_checkpoint()) {
      accelerator_.load_state(checkpoint->path());
    } else if (o_.eval_first) {
      const auto before = evaluate();
      context_.report({{"epoch", 0}, {"eval_loss", before.loss}, {"perplexity", before.perplexity()}});
    }
    detail::StepMeter meter{accelerator_, o_, config_};
    while (limited() ? scheduler.last_step() < total_ : loader_.epoch() < o_.num_epochs) {
      const auto epoch = loader_.epoch();
      const auto outcome = train_epoch(meter, scheduler, epoch);
      if (outcome == Outcome::Stop) return save({{"epoch", epoch + 1}, {"iteration", scheduler.last_step()}});
      const auto result = evaluate();
      save({{"epoch", epoch + 1}, {"iteration", scheduler.last_step()}, {"train_loss", meter.loss()}, {"eval_loss", result.loss}, {"perplexity", result.perplexity()}});
      meter.restart();
      if (o_.stop_perplexity > 0 && result.perplexity() < o_.stop_perplexity) return;
    }
  }

 private:
  enum class Outcome : std::uint8_t { Whole, Enough, Stop };

  [[nodiscard]] bool limited() const { return o_.as_test || o_.max_steps > 0; }

  LlamaForCausalLM seeded_model() {
    set_seed(o_.seed);
    auto model = detail::make_model(o_, *data_.tokenizer, config_);
    set_seed(o_.seed, true, context_.world_rank());  // from here on every rank drops other units
    return model;
  }

  detail::Evaluation evaluate() {
    return detail::evaluate(accelerator_, model_, data_, o_.eval_batch_size_per_device, o_.as_test ? 1 : 0);
  }

  Outcome train_epoch(detail::StepMeter& meter, LRScheduler& scheduler, std::int64_t epoch) {
    Progress progress{.epoch = static_cast<int>(epoch) + 1, .num_epochs = o_.num_epochs, .num_steps = total_};
    for (const auto& batch : loader_) {
      const auto window = accelerator_.accumulate();
      micro_batch(batch, meter);
      {
        const detail::Stopwatch watch{meter.times.optimizer};
        optimizer_.step();
        scheduler.step();
        optimizer_.zero_grad();
      }
      if (!accelerator_.sync_gradients()) continue;
      const auto rows = static_cast<double>(batch.batch_size() * accelerator_.num_processes()), tokens = static_cast<double>(batch["input_ids"].numel() * accelerator_.num_processes());
      const auto metrics = meter.finish(epoch + 1, scheduler.last_step(), scheduler.get_last_lr());
      context_.report(metrics);  // by all ranks: a checkpoint is made of reports with the same number
      progress.step = scheduler.last_step();
      progress.loss = meter.loss();
      progress.samples_per_s = meter.tokens_per_s() * rows / tokens;
      context_.progress(progress);
      if (context_.should_stop()) return Outcome::Stop;  // the next start goes on with the next batch
      if (limited() && scheduler.last_step() >= total_) return Outcome::Enough;
      if (o_.checkpoint_every > 0 && scheduler.last_step() % o_.checkpoint_every == 0) {
        save({{"epoch", epoch + 1}, {"iteration", scheduler.last_step()}});
        meter.restart();
      }
    }
    return Outcome::Whole;
  }

  void micro_batch(const Batch& batch, detail::StepMeter& meter) {
    CausalLMOutput output;
    {
      const detail::Stopwatch watch{meter.times.forward};
      const auto scope = accelerator_.autocast();
      output = model_(batch);
    }
    {
      const detail::Stopwatch watch{meter.times.backward};
      // Rows differ in the tokens that are predicted: each counts as much as any other of the window.
      accelerator_.backward(output.loss, static_cast<double>(output.num_targets));
    }
    meter.add(output.loss, output.num_targets, batch["input_ids"].numel());
  }

  /// A checkpoint that Hugging Face's libraries open: the model, or PEFT's adapter.
  void save(const Metrics& metrics) {
    const auto checkpoint = accelerator_.checkpoint();
    if (o_.lora) save_adapter(accelerator_, *model_, checkpoint.path());
    if (accelerator_.is_main_process()) {
      if (!o_.lora) model_->config().save(checkpoint.path() / "config.json");
      data_.tokenizer->save(checkpoint.path());
      const auto generation = fs::path{o_.model_path} / "generation_config.json";
      if (fs::exists(generation)) fs::copy_file(generation, checkpoint.path() / "generation_config.json", fs::copy_options::overwrite_existing);
    }
    context_.report(metrics, checkpoint);
  }

  TrainContext& context_;
  const LlamaFinetuneOptions& o_;
  const LlamaConfig& config_;
  Accelerator accelerator_;
  FinetuneData data_;
  LlamaForCausalLM model_;
  AdamW optimizer_;
  DataLoader loader_;
  std::int64_t per_epoch_ = 0, total_ = 0;
};

}  // namespace

void finetune_llama(TrainContext& context, const Config& config) {
  const auto options = llama_finetune_options(config);
  const auto model_config = LlamaConfig::from_file(fs::path{options.model_path} / "config.json");
  Finetune{context, options, model_config}.run();
}

}  // namespace troupe
