#include "traj_run.hpp"

#include <troupe/accelerator.hpp>
#include <troupe/bert.hpp>
#include <troupe/tensor_files.hpp>

#include <ATen/core/grad_mode.h>

#include <cmath>
#include <cstdlib>
#include <fstream>
#include <nlohmann/json.hpp>
#include <regex>
#include <sstream>
#include <stdexcept>

namespace troupe::test {

namespace {

namespace fs = std::filesystem;

fs::path golden() {
  const char* const other = std::getenv("TROUPE_GOLDEN");
  return other ? other : TROUPE_TEST_GOLDEN;
}

nlohmann::json read_json(const fs::path& file) {
  std::ifstream in{file};
  if (!in) throw std::runtime_error(file.string() + ": no such file");
  return nlohmann::json::parse(in);
}

fs::path curve_file(const std::string& mode) { return golden() / "c_traj" / ("curve_" + mode + ".json"); }

int number_in(const std::string& text, const std::string& pattern, int fallback) {
  std::smatch match;
  return std::regex_search(text, match, std::regex{pattern}) ? std::stoi(match[1]) : fallback;
}

bool is_plain(const std::string& name) { return name.ends_with("bias") || name.ends_with("LayerNorm.weight"); }

BertForSequenceClassification make_model() {
  BertForSequenceClassification model{BertConfig::from_file(golden() / "a_tiny_bert" / "config.json")};
  const auto weights = read_safetensors(golden() / "c_traj" / "init.safetensors");
  const at::NoGradGuard no_grad;
  for (auto& item : model->named_parameters()) item.value().copy_(weights.at(item.key()));
  return model;
}

std::vector<ParamGroup> groups_of(const BertForSequenceClassification& model, const TrajectoryMode& mode) {
  std::vector<ParamGroup> groups(2);
  groups[1].weight_decay = 0;
  for (const auto& item : model->named_parameters()) groups[mode.no_decay && is_plain(item.key())].params.push_back(item.value());
  return groups;
}

Batch rows(const TensorMap& data, std::int64_t first, std::int64_t count) {
  Batch batch;
  for (const auto& [name, tensor] : data) batch.set(name, tensor.narrow(0, first, count));
  return batch;
}

void check(bool ok, const std::string& what, std::size_t step, double ours, double golden) {
  if (ok) return;
  std::ostringstream text;
  text.precision(12);
  text << what << " of step " << step << ": " << ours << ", golden " << golden;
  throw std::runtime_error(text.str());
}

}  // namespace

TrajectoryMode read_mode(const fs::path& file) {
  const auto json = read_json(file);
  const auto what = json.at("what").get<std::string>();
  TrajectoryMode mode;
  mode.name = file.stem().string().substr(std::string{"curve_"}.size());
  mode.processes = number_in(what, "(\\d+) process", 1);
  mode.batch_size = number_in(what, "batch (\\d+)", 16 / mode.processes);
  mode.accumulation = number_in(what, "gradient_accumulation_steps (\\d+)", 1);
  mode.clip = json.at("clip").is_null() ? 0 : json.at("clip").get<double>();
  mode.weight_decay = json.value("weight_decay", 0.01);
  mode.no_decay = json.contains("no_decay") && !json.at("no_decay").is_null();
  mode.bf16 = mode.name.ends_with("bf16");
  if (mode.name.starts_with("zero1")) mode.sharding.strategy = ShardingStrategy::ShardOptimizer;
  if (mode.name.starts_with("zero2")) mode.sharding.strategy = ShardingStrategy::ShardGradients;
  if (mode.name.starts_with("zero3") || mode.name.starts_with("fsdp")) mode.sharding.strategy = ShardingStrategy::ShardParameters;
  if (mode.name.find("sched_not_scaled") != std::string::npos) {
    // Two steps an update: the schedule itself is that of the plain run.
    const auto plain = read_mode(file.parent_path() / "curve_single.json");
    mode.lr = plain.lr;
    mode.warmup = plain.warmup;
    mode.steps_scheduler_per_process = true;
    return mode;
  }
  const auto& steps = json.at("steps");
  for (std::size_t s = 0; s < steps.size(); ++s) {
    const auto lr = steps[s].at("lr").get<double>();
    if (lr <= mode.lr) continue;
    mode.lr = lr;
    mode.warmup = static_cast<std::int64_t>(s);
  }
  return mode;
}

std::vector<std::string> trajectory_modes() {
  std::vector<std::string> modes;
  if (!fs::exists(golden() / "c_traj")) return modes;
  for (const auto& entry : fs::directory_iterator{golden() / "c_traj"}) {
    const auto stem = entry.path().stem().string();
    if (entry.path().extension() != ".json" || !stem.starts_with("curve_")) continue;
    modes.push_back(stem.substr(6));
  }
  std::sort(modes.begin(), modes.end());
  return modes;
}

Trajectory train(TrainContext& context, const TrajectoryMode& mode) {
  Accelerator accelerator{context,
                          {.mixed_precision = mode.bf16 ? Precision::BF16 : Precision::No,
                           .gradient_accumulation_steps = mode.accumulation,
                           .sharding = mode.sharding,
                           .compat = {.step_scheduler_per_process = mode.steps_scheduler_per_process}}};
  const auto data = read_safetensors(golden() / "c_traj" / "batches.safetensors");
  const auto global = mode.batch_size * mode.processes * mode.accumulation;
  const auto num_steps = data.at("labels").size(0) / global;
  const auto micro = global / mode.accumulation / context.world_size();

  auto model = make_model();
  AdamW optimizer{groups_of(model, mode), {.lr = mode.lr, .weight_decay = mode.weight_decay}};
  auto scheduler = get_linear_schedule_with_warmup(optimizer, mode.warmup, num_steps);
  accelerator.prepare(model, optimizer, scheduler);
  if (mode.steps_scheduler_per_process) scheduler.set_steps_per_update(mode.processes);  // also with fewer ranks
  model->train();
  Trajectory result;
  for (std::int64_t step = 0; step < num_steps; ++step) {
    double loss_sum = 0;
    for (int m = 0; m < mode.accumulation; ++m) {
      const auto window = accelerator.accumulate();
      const auto batch = rows(data, step * global + (m * context.world_size() + context.world_rank()) * micro, micro);
      at::Tensor loss;
      {
        const auto scope = accelerator.autocast();
        loss = model(batch).loss;
      }
      accelerator.backward(loss);
      loss_sum += accelerator.reduce(loss.to(at::kDouble), ReduceOp::Mean).item<double>();
      if (accelerator.sync_gradients()) {
        result.lrs.push_back(optimizer.lr());
        const auto limit = mode.clip > 0 ? mode.clip : std::numeric_limits<double>::infinity();
        result.grad_norms.push_back(accelerator.clip_grad_norm(model->parameters(), limit));
      }
      optimizer.step();
      scheduler.step();
      optimizer.zero_grad();
    }
    result.losses.push_back(loss_sum / mode.accumulation);
  }
  for (const auto& [name, tensor] : accelerator.get_state_dict(model)) result.parameter_l2[name] = tensor.to(at::kDouble).norm().item<double>();
  return result;
}

void compare_with_golden(const Trajectory& ours, const TrajectoryMode& mode) {
  const auto json = read_json(curve_file(mode.name));
  const auto all = read_json(golden() / "c_traj" / "sensitivity.json").at("tolerance");
  const auto tolerance = mode.bf16 ? all.at("bf16_modes") : all;
  const auto& steps = json.at("steps");
  if (ours.losses.size() != steps.size()) throw std::runtime_error("trained " + std::to_string(ours.losses.size()) + " steps");
  for (std::size_t s = 0; s < steps.size(); ++s) {
    const auto loss = steps[s].at("loss").get<double>();
    const auto norm = steps[s].at("grad_norm").get<double>();
    const auto lr = steps[s].at("lr").get<double>();
    check(std::abs(ours.lrs[s] - lr) <= all.at("lr_abs").get<double>(), "lr", s, ours.lrs[s], lr);
    check(std::abs(ours.losses[s] - loss) <= tolerance.at("loss_abs").get<double>(), "loss", s, ours.losses[s], loss);
    check(std::abs(ours.grad_norms[s] - norm) <= tolerance.at("grad_norm_rel").get<double>() * norm, "grad_norm", s, ours.grad_norms[s], norm);
  }
  if (ours.parameter_l2.empty()) return;  // gathered on rank 0
  const auto limit = mode.bf16 ? tolerance.at("param_l2_rel").get<double>() : all.at("param_l2_rel_without_key_bias").get<double>();
  for (const auto& [name, expected] : json.at("final_param").items()) {
    if (name.ends_with("attention.self.key.bias")) continue;  // its true gradient is 0: Adam scales rounding up
    const auto l2 = expected.at("l2").get<double>();
    const auto mine = ours.parameter_l2.at(name);
    check(std::abs(mine - l2) <= limit * l2, "L2 of " + name + " at the end", steps.size(), mine, l2);
  }
}

}  // namespace troupe::test
