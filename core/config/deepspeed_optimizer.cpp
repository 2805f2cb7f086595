// The sections `optimizer` and `scheduler`.
#include "deepspeed_resolver.hpp"

#include <algorithm>
#include <array>

namespace troupe::detail {

namespace {

using enum Fate;

constexpr KeyRule clip{"max_grad_norm", Default, "write 'gradient_clipping' at the top level", "[]"};

constexpr KeyRule adam_params[] = {
    {"lr"}, {"betas"}, {"eps"}, {"weight_decay"}, {"adam_w_mode"}, clip,
    {"bias_correction", Default, "remove it", "[true]"},
    {"amsgrad", Default, "remove it", "[false]"},
    {"torch_adam", Default, "", "[true, false]", "Adam is always Troupe's own; no effect"},
    {"fused", Default, "", "[true, false]", "the update is always fused; no effect"},
    {"fp32_optimizer_states", Default, "optimizer state is fp32; remove it", "[true]"},
};
constexpr KeyRule lion_params[] = {{"lr"}, {"betas"}, {"weight_decay"}, clip};
constexpr KeyRule adagrad_params[] = {{"lr"}, {"lr_decay"}, {"eps"}, {"weight_decay"}, clip,
                                      {"initial_accumulator_value", Default, "remove it", "[0]"}};
constexpr KeyRule sgd_params[] = {{"lr"}, {"momentum"}, {"nesterov"}, {"weight_decay"}, clip,
                                  {"dampening", Default, "remove it", "[0]"}};

struct OptimizerRule {
  const char* name;
  std::span<const KeyRule> params;
  double lr;  ///< default
  double beta2;
  double eps;
};

constexpr OptimizerRule optimizers[] = {{"AdamW", adam_params, 1e-3, 0.999, 1e-8},
                                        {"Adam", adam_params, 1e-3, 0.999, 1e-8},
                                        {"SGD", sgd_params, 1e-3, 0.999, 1e-8},
                                        {"Adagrad", adagrad_params, 1e-2, 0.999, 1e-10},
                                        {"Lion", lion_params, 1e-3, 0.999, 1e-8}};

constexpr KeyRule warmup_lr[] = {{"warmup_min_lr"}, {"warmup_max_lr"}, {"warmup_num_steps"}, {"warmup_type"},
                                 {"last_batch_iteration", Default, "steps are restored from checkpoints; remove it", "[-1]"}};
constexpr KeyRule warmup_decay_lr[] = {{"total_num_steps"}, {"warmup_min_lr"}, {"warmup_max_lr"}, {"warmup_num_steps"}, {"warmup_type"},
                                       {"last_batch_iteration", Default, "steps are restored from checkpoints; remove it", "[-1]"}};
constexpr KeyRule warmup_cosine_lr[] = {{"total_num_steps"}, {"warmup_min_ratio"}, {"warmup_num_steps"}, {"cos_min_ratio"}, {"warmup_type"},
                                        {"last_batch_iteration", Default, "steps are restored from checkpoints; remove it", "[-1]"}};
constexpr std::string_view no_momentum = "momentum is not cycled; write 'cycle_momentum': false";
constexpr KeyRule one_cycle[] = {{"cycle_min_lr"}, {"cycle_max_lr"}, {"decay_lr_rate"}, {"cycle_first_step_size"}, {"cycle_second_step_size"},
                                 {"cycle_first_stair_count"}, {"cycle_second_stair_count"}, {"decay_step_size"},
                                 {"cycle_momentum", Default, no_momentum, "[false]"},
                                 {"cycle_min_mom", Default, no_momentum, "[]"},
                                 {"cycle_max_mom", Default, no_momentum, "[]"},
                                 {"decay_mom_rate", Default, no_momentum, "[0]"},
                                 {"last_batch_iteration", Default, "steps are restored from checkpoints; remove it", "[-1]"}};
constexpr KeyRule range_test[] = {{"lr_range_test_min_lr"}, {"lr_range_test_step_size"}, {"lr_range_test_step_rate"}, {"lr_range_test_staircase"},
                                  {"last_batch_iteration", Default, "steps are restored from checkpoints; remove it", "[-1]"}};

struct SchedulerRule {
  const char* name;
  std::span<const KeyRule> params;
};
constexpr SchedulerRule schedulers[] = {{"WarmupLR", warmup_lr}, {"WarmupDecayLR", warmup_decay_lr}, {"WarmupCosineLR", warmup_cosine_lr},
                                        {"OneCycle", one_cycle}, {"LRRangeTest", range_test}};

/// The rule of `section`'s type; its name is asked for, whatever its case.
template <class Rule, std::size_t Count>
const Rule& rule_of(const Section& section, const Rule (&rules)[Count]) {
  std::vector<std::string> names;
  for (const auto& rule : rules) names.emplace_back(rule.name);
  const auto type = section.choice("type", names);
  if (!type) section.fail("type", "is missing");
  return *std::find_if(std::begin(rules), std::end(rules), [&](const Rule& rule) { return *type == rule.name; });
}

}  // namespace

void DeepSpeedResolver::optimizer() {
  if (!root_.has("optimizer")) return;
  const auto section = root_.section("optimizer");
  const auto& rule = rule_of(section, optimizers);
  const auto params = section.section("params");
  check_keys(document_, "optimizer.params", rule.params, out_.notes);
  OptimizerConfig made;
  made.type = rule.name;
  made.lr = rule.lr;
  made.beta2 = rule.beta2;
  made.eps = rule.eps;
  if (params.is_auto("lr")) {
    made.lr = facts_.lr;
    if (!made.lr) missing(params, "lr", "the optimizer's lr");
  } else if (const auto lr = params.number("lr")) {
    made.lr = lr;
  }
  if (params.is_auto("weight_decay")) {
    if (facts_.weight_decay) {
      made.weight_decay = *facts_.weight_decay;
    } else {
      missing(params, "weight_decay", "the optimizer's weight_decay");
    }
  } else {
    made.weight_decay = params.number("weight_decay").value_or(0);
  }
  if (const auto betas = params.numbers("betas", 2)) {
    for (const double beta : *betas) {
      if (beta < 0 || beta >= 1) params.fail("betas", "must be two numbers from 0 to below 1");
    }
    made.beta1 = betas->at(0);
    made.beta2 = betas->at(1);
  }
  made.eps = params.number("eps").value_or(made.eps);
  made.momentum = params.number("momentum", 0, 1).value_or(0);
  made.nesterov = params.boolean("nesterov").value_or(false);
  made.lr_decay = params.number("lr_decay").value_or(0);
  // DeepSpeed: Adam is AdamW unless adam_w_mode is false; AdamW is AdamW whatever it is.
  const bool decoupled = params.boolean("adam_w_mode").value_or(true);
  if (made.type == "Adam" && decoupled) {
    made.type = "AdamW";
    out_.notes.push_back(section.origin("type") + ": Adam means AdamW, as in DeepSpeed; 'adam_w_mode': false is Adam with L2");
  }
  out_.optimizer = made;
  from("optimizer", root_, "optimizer");
  check_all_read(document_, "optimizer.params", rule.params, read_);
}

void DeepSpeedResolver::warmup(const Section& params, LRScheduleConfig& made) {
  made.warmup_log = params.choice("warmup_type", {"log", "linear"}).value_or("log") == "log";
  if (params.is_auto("warmup_num_steps")) {
    if (facts_.num_warmup_steps) {
      made.warmup_num_steps = std::max<std::int64_t>(1, *facts_.num_warmup_steps);
    } else {
      missing(params, "warmup_num_steps", "the scheduler's warm-up steps");
    }
  } else {
    made.warmup_num_steps = params.integer("warmup_num_steps", 1).value_or(1000);
  }
  if (made.type == "WarmupCosineLR") {
    made.warmup_min_ratio = params.number("warmup_min_ratio").value_or(0);
    made.cos_min_ratio = params.number("cos_min_ratio").value_or(1e-4);
  } else {
    made.warmup_min_lr = params.is_auto("warmup_min_lr") ? 0 : params.number("warmup_min_lr").value_or(0);
    if (params.is_auto("warmup_max_lr")) {
      made.warmup_max_lr = facts_.lr ? facts_.lr : out_.optimizer ? out_.optimizer->lr : std::nullopt;
      if (!made.warmup_max_lr) missing(params, "warmup_max_lr", "the optimizer's lr");
    } else {
      made.warmup_max_lr = params.number("warmup_max_lr");
    }
  }
  if (made.type == "WarmupLR") return;
  if (params.is_auto("total_num_steps")) {
    if (!facts_.total_num_steps) {
      missing(params, "total_num_steps", "the scheduler's total steps");
    } else if (!facts_.split_batches && !facts_.num_processes) {
      missing(params, "total_num_steps", "num_processes");
    } else {
      const std::int64_t ranks = facts_.split_batches ? 1 : *facts_.num_processes;
      made.total_num_steps = (*facts_.total_num_steps + ranks - 1) / ranks;
    }
    return;
  }
  const auto total = params.integer("total_num_steps", 1);
  if (!total) params.fail("total_num_steps", "is missing; " + made.type + " needs it");
  made.total_num_steps = *total;
}

void DeepSpeedResolver::cycle(const Section& params, LRScheduleConfig& made) {
  const auto least = params.number("cycle_min_lr");
  const auto most = params.number("cycle_max_lr");
  if (!least) params.fail("cycle_min_lr", "is missing; OneCycle needs it");
  if (!most) params.fail("cycle_max_lr", "is missing; OneCycle needs it");
  made.cycle_min_lr = *least;
  made.cycle_max_lr = *most;
  made.decay_lr_rate = params.number("decay_lr_rate").value_or(0);
  made.cycle_first_step_size = params.integer("cycle_first_step_size", 1).value_or(2000);
  made.cycle_second_step_size = params.integer("cycle_second_step_size", 0);
  made.cycle_first_stair_count = params.integer("cycle_first_stair_count", 0).value_or(0);
  made.cycle_second_stair_count = params.integer("cycle_second_stair_count", 0);
  made.decay_step_size = params.integer("decay_step_size", 0).value_or(0);
  if (!params.has("cycle_momentum")) out_.notes.push_back(params.origin("cycle_momentum") + ": momentum is not cycled (DeepSpeed would, and set beta2 to 0.99)");
}

void DeepSpeedResolver::scheduler() {
  if (!root_.has("scheduler")) return;
  const auto section = root_.section("scheduler");
  const auto& rule = rule_of(section, schedulers);
  const auto params = section.section("params");
  check_keys(document_, "scheduler.params", rule.params, out_.notes);
  LRScheduleConfig made;
  made.type = rule.name;
  if (made.type == "OneCycle") {
    cycle(params, made);
  } else if (made.type == "LRRangeTest") {
    made.lr_range_test_min_lr = params.number("lr_range_test_min_lr").value_or(1e-3);
    made.lr_range_test_step_size = params.integer("lr_range_test_step_size", 1).value_or(2000);
    made.lr_range_test_step_rate = params.number("lr_range_test_step_rate").value_or(1);
    made.lr_range_test_staircase = params.boolean("lr_range_test_staircase").value_or(false);
  } else {
    warmup(params, made);
  }
  out_.scheduler = made;
  from("scheduler", root_, "scheduler");
  check_all_read(document_, "scheduler.params", rule.params, read_);
}

}  // namespace troupe::detail
