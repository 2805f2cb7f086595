#include "commands.hpp"
#include "config_file.hpp"

#include <troupe/accelerate_config.hpp>
#include <troupe/deepspeed_plugin.hpp>

#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>

namespace troupe::tools {

namespace {

struct Options {
  std::string file;
  ConfigFacts facts;
  bool strict = false;
  bool json = false;
};

}  // namespace

EffectiveConfig resolve_file(const std::string& file, const ConfigFacts& facts) {
  return file.ends_with(".json") ? DeepSpeedPlugin::from_json(file).resolve(facts) : AccelerateConfig::from_yaml(file).resolve(facts);
}

Command add_config(CLI::App& app) {
  auto options = std::make_shared<Options>();
  auto& o = *options;
  auto* command = app.add_subcommand("config", "Prints what a DeepSpeed JSON or accelerate YAML file comes down to, and where every value came from");
  command->add_option("FILE", o.file, "DeepSpeed's JSON (.json), or what `accelerate config` wrote")->required();
  command->add_option("--world-size,--num-processes", o.facts.num_processes, "ranks")->check(CLI::Range(1, 16'384));
  command->add_option("--num-machines", o.facts.num_machines, "machines they are on")->check(CLI::Range(1, 16'384));
  command->add_option("--micro-batch-size", o.facts.batch_sizes, "batch_size of a prepared loader; may be given again")->allow_extra_args(false)->check(CLI::Range(1, 2'147'483'647));
  command->add_flag("--split-batches", o.facts.split_batches, "those are of all ranks together");
  command->add_option("--gradient-accumulation-steps", o.facts.gradient_accumulation_steps, "the Accelerator's")->check(CLI::Range(1, 1'000'000));
  command->add_option("--mixed-precision", o.facts.mixed_precision, "the Accelerator's")->check(CLI::IsMember({"no", "fp16", "bf16"}));
  command->add_option("--hidden-size", o.facts.hidden_sizes, "of the model's config")->allow_extra_args(false)->check(CLI::Range(1, 1 << 20));
  command->add_option("--lr", o.facts.lr, "the optimizer's")->check(CLI::NonNegativeNumber);
  command->add_option("--weight-decay", o.facts.weight_decay, "the optimizer's")->check(CLI::NonNegativeNumber);
  command->add_option("--num-warmup-steps", o.facts.num_warmup_steps, "the scheduler's")->check(CLI::NonNegativeNumber);
  command->add_option("--total-num-steps", o.facts.total_num_steps, "the scheduler's, as one process would take them")->check(CLI::PositiveNumber);
  command->add_flag("--compat", o.facts.compat, "with upstream's implicit clipping at 1.0 and 16-bit reductions");
  command->add_flag("--strict", o.strict, "an \"auto\" that the options do not settle is an error");
  command->add_flag("--json", o.json, "as JSON");
  return [options] {
    auto facts = options->facts;
    facts.partial = !options->strict;
    const auto config = resolve_file(options->file, facts);
    std::fputs(options->json ? (to_json(config).dump(2) + "\n").c_str() : to_text(config).c_str(), stdout);
    return 0;
  };
}

}  // namespace troupe::tools
