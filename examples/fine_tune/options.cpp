#include <troupe/fine_tune_pairs.hpp>
#include <troupe/options.hpp>

#include <cstdio>
#include <map>

namespace troupe {

Config to_config(const FineTuneOptions& o) {
  return {{"model", o.model},
          {"data", o.data},
          {"train_file", o.train_file},
          {"eval_file", o.eval_file},
          {"num_train_epochs", o.num_train_epochs},
          {"per_device_train_batch_size", o.per_device_train_batch_size},
          {"per_device_eval_batch_size", o.per_device_eval_batch_size},
          {"learning_rate", o.learning_rate},
          {"weight_decay", o.weight_decay},
          {"warmup_ratio", o.warmup_ratio},
          {"num_warmup_steps", o.num_warmup_steps},
          {"gradient_accumulation_steps", o.gradient_accumulation_steps},
          {"max_grad_norm", o.max_grad_norm},
          {"max_length", o.max_length},
          {"seed", o.seed},
          {"mixed_precision", o.mixed_precision},
          {"deepspeed", o.deepspeed}};
}

void add_options(CLI::App& app, FineTuneOptions& o) {
  app.add_option("--model", o.model, "Hugging Face directory of a BERT: config.json, model.safetensors, vocab.txt")->required();
  app.add_option("--data", o.data, "directory with the sentence pairs (MRPC layout)")->required();
  app.add_option("--train_file", o.train_file, "training pairs (default: the usual names in --data)");
  app.add_option("--eval_file", o.eval_file, "evaluation pairs (default: the usual names in --data)");
  app.add_option("--num_train_epochs", o.num_train_epochs, "epochs")->capture_default_str()->check(CLI::Range(1, 1000));
  app.add_option("--per_device_train_batch_size", o.per_device_train_batch_size, "pairs a rank and step")->capture_default_str()->check(CLI::Range(1, 65536));
  app.add_option("--per_device_eval_batch_size", o.per_device_eval_batch_size, "pairs a rank and evaluation step")->capture_default_str()->check(CLI::Range(1, 65536));
  app.add_option("--learning_rate", o.learning_rate, "peak learning rate of AdamW")->capture_default_str()->check(CLI::Range(0.0, 1.0));
  app.add_option("--weight_decay", o.weight_decay, "not on biases and LayerNorm weights")->capture_default_str()->check(CLI::Range(0.0, 1.0));
  app.add_option("--warmup_ratio", o.warmup_ratio, "share of all updates")->capture_default_str()->check(CLI::Range(0.0, 1.0));
  app.add_option("--num_warmup_steps", o.num_warmup_steps, "updates of warm-up (negative: from --warmup_ratio)")->capture_default_str();
  app.add_option("--gradient_accumulation_steps", o.gradient_accumulation_steps, "batches an update")->capture_default_str()->check(CLI::Range(1, 65536));
  app.add_option("--max_grad_norm", o.max_grad_norm, "clip gradients to this L2 norm (0: never)")->capture_default_str()->check(CLI::NonNegativeNumber);
  app.add_option("--max_length", o.max_length, "tokens of a pair, longer ones are cut")->capture_default_str()->check(CLI::Range(8, 512));
  app.add_option("--seed", o.seed, "of initialisation, dropout and shuffling")->capture_default_str();
  app.add_option("--mixed_precision", o.mixed_precision, "no or bf16")->capture_default_str()->check(CLI::IsMember({"no", "bf16"}));
  app.add_option("--deepspeed", o.deepspeed, "a DeepSpeed JSON: train sharded by its ZeRO stage; its accumulation and clipping count");
}

void add_options(CLI::App& app, TrainerOptions& o) {
  static const std::map<std::string, Placement> placements{{"threads", Placement::Threads}, {"processes", Placement::Processes}};
  static const std::map<std::string, Resume> resumes{{"auto", Resume::Auto}, {"never", Resume::Never}, {"must", Resume::Must}};
  app.add_option("--num_workers", o.scaling.num_workers, "ranks")->capture_default_str();
  app.add_option("--cpus_per_worker", o.scaling.cpus_per_worker, "threads of each rank")->capture_default_str();
  app.add_option("--placement", o.scaling.placement, "where ranks live (default threads)")
      ->transform(CLI::CheckedTransformer(placements).description("threads|processes"));
  app.add_option("--min_workers", o.scaling.min_workers, "go on with as few ranks when one cannot be replaced (0: never fewer)")->capture_default_str();
  app.add_option("--spare_workers", o.scaling.spare_workers, "processes kept ready to replace a lost rank")->capture_default_str();
  app.add_option("--max_failures", o.run.failure.max_failures, "restarts after a lost rank (-1: any number)")->capture_default_str();
  app.add_option("--storage_path", o.run.storage_path, "runs are kept here")->capture_default_str();
  app.add_option("--name", o.run.name, "of the run: its directory in --storage_path")->capture_default_str();
  app.add_option("--resume", o.run.resume, "go on with a run of this name, if there is one, never, or else fail")
      ->transform(CLI::CheckedTransformer(resumes).description("auto|never|must"));
}

void print_summary(const Result& result) {
  std::printf("\nRun directory    %s\n", result.path.c_str());
  std::printf("Reports          %zu, in reports.jsonl\n", result.history.size());
  std::printf("Result           %s\n", (result.path / "result.json").c_str());
  for (const auto& record : result.checkpoints) std::printf("Checkpoint       %s\n", record.checkpoint.path().c_str());
  if (result.best_checkpoint) {
    const auto& best = *result.best_checkpoint;
    std::printf("Best checkpoint  %s\n", best.checkpoint.path().c_str());
    for (const char* metric : {"epoch", "accuracy", "f1", "loss", "eval_loss", "perplexity"}) {
      if (const auto value = best.metrics.number(metric)) std::printf("  %-14s %.4g\n", metric, *value);
    }
  }
  if (!result.error) return;
  const auto& error = *result.error;
  std::printf("Error            %s\n", error.message.c_str());
  if (error.rank) std::printf("  rank           %d\n", *error.rank);
  if (error.signal) std::printf("  signal         %d\n", *error.signal);
  if (error.exit_code) std::printf("  exit code      %d\n", *error.exit_code);
  for (const auto& line : error.last_lines) std::printf("  | %s\n", line.c_str());
}

}  // namespace troupe
