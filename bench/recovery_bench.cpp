// From a fault in one of two ranks (processes) to the next completed step on all of them.
//
//   recovery_bench [--json FILE]    all cases, three runs each, a table on stderr and FILE
//   recovery_bench --case throw|kill|spare|stop [--state-mb 50] [--runs 3]
//                                   the last line is one JSON object, medians in seconds since the fault:
//                                   survivor_s  the other rank's step has failed; begun_s  the next attempt is begun
//                                   entered_s   all ranks run the train function; resumed_s  all have completed a step
//                                   steps_lost  steps that were completed and had to be done again
// Ranks train a stack of linear layers with AdamW in steps of 50 ms; the state is copied to memory after every step.
#include <troupe/accelerator.hpp>
#include <troupe/data/data_loader.hpp>
#include <troupe/optimizer.hpp>
#include <troupe/session.hpp>
#include <troupe/trainer.hpp>

#include <ATen/ops/randn.h>
#include <ATen/ops/relu.h>
#include <torch/nn/modules/linear.h>

#include <signal.h>
#include <unistd.h>

#include <caf/all.hpp>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <thread>

#include "control_figures.hpp"

namespace {

using namespace troupe;
using namespace troupe::bench;
using namespace std::chrono_literals;
using Json = nlohmann::ordered_json;

constexpr int num_ranks = 2;
constexpr std::int64_t width = 512, fault_step = 20, steps_after = 10;
constexpr auto step_time = 50ms;

/// Lines of JSON from all processes of a run.
void log_event(const std::string& directory, Json event) {
  event["t"] = now_s();
  std::ofstream{directory + "/events." + std::to_string(getpid()), std::ios::app} << event.dump() + "\n";
}

struct StackImpl : torch::nn::Module {
  explicit StackImpl(std::int64_t layers) {
    for (std::int64_t i = 0; i < layers; ++i) list.push_back(register_module("linear" + std::to_string(i), torch::nn::Linear(width, width)));
  }
  at::Tensor forward(at::Tensor x) {
    for (auto& layer : list) x = at::relu(layer(x));
    return x;
  }
  std::vector<torch::nn::Linear> list;
};
TORCH_MODULE(Stack);

class Rows final : public MapDataset {
 public:
  [[nodiscard]] std::size_t size() const override { return 1 << 20; }
  [[nodiscard]] TensorDict get(std::size_t) const override { return {{"x", row_}}; }

 private:
  at::Tensor row_ = at::randn({width});
};

void strike(const std::string& fault) {
  if (fault == "throw") throw std::runtime_error{"injected"};
  ::raise(fault == "stop" ? SIGSTOP : SIGKILL);
}

void train(TrainContext& context, const Config& config) {
  const auto log = config.get<std::string>("log");
  const auto attempt = context.attempt();
  const auto rank = context.world_rank();
  log_event(log, {{"event", "entered"}, {"attempt", attempt}, {"rank", rank}});
  Accelerator accelerator{context, {}};
  Stack model{std::max<std::int64_t>(1, config.get<std::int64_t>("state_mb") * 1'000'000 / (width * width * 12))};
  AdamW optimizer{model->parameters(), {.lr = 1e-4}};
  DataLoader loader{std::make_shared<Rows>(), {.batch_size = 4}};
  std::int64_t step = 0;
  struct Counter {
    std::int64_t& value;
    [[nodiscard]] std::string state_dict() const { return std::to_string(value); }
    void load_state_dict(const std::string& bytes) { value = std::stoll(bytes); }
  } counter{step};
  accelerator.register_for_checkpointing(counter);
  accelerator.prepare(model, optimizer, loader);
  if (const auto copy = context.get_checkpoint()) accelerator.load_state(copy->path());
  const std::int64_t first = step, end = attempt == 1 ? 1'000'000 : step + steps_after;
  try {
    for (const auto& batch : loader) {
      const auto due = std::chrono::steady_clock::now() + step_time;
      const auto window = accelerator.accumulate();
      if (attempt == 1 && rank == 1 && step == fault_step) {
        log_event(log, {{"event", "fault"}, {"step", step}});
        strike(config.get<std::string>("fault"));
      }
      accelerator.backward(model(batch["x"]).sum());
      optimizer.step();
      optimizer.zero_grad();
      std::this_thread::sleep_until(due);
      if (step++ == first) log_event(log, {{"event", "first_step"}, {"attempt", attempt}, {"rank", rank}, {"step", first}});
      if (step == end) return;
    }
  } catch (const Failure&) {
    log_event(log, {{"event", "survivor"}, {"attempt", attempt}, {"rank", rank}, {"step", step}});
    throw;
  }
}

/// A directory that is gone after the run.
struct Scratch {
  Scratch() {
    auto pattern = (std::filesystem::temp_directory_path() / "troupe-recovery-bench-XXXXXX").string();
    if (!::mkdtemp(pattern.data())) throw Failure{Errc::StorageUnavailable, pattern + " cannot be made"};
    path = pattern;
  }
  ~Scratch() { std::filesystem::remove_all(path); }
  std::string path;
};

struct Case {
  std::string name;
  std::int64_t state_mb = 50;
};

Json run(const Session& session, const Case& c) {
  const Scratch scratch;
  Json settings{{"log", scratch.path}, {"fault", c.name == "spare" ? "kill" : c.name}, {"state_mb", c.state_mb}};
  TrainerOptions options;
  options.scaling.num_workers = num_ranks;
  options.scaling.placement = Placement::Processes;
  options.scaling.spare_workers = c.name == "spare" ? 1 : 0;
  options.run.name = "run";
  options.run.storage_path = scratch.path;
  options.run.failure.max_failures = 1;
  options.run.step_timeout = 2s;
  options.run.progress = false;
  double begun = 0;
  {
    caf::actor_system_config config;
    register_types(config);
    caf::actor_system system{config};
    caf::scoped_actor self{system};
    (void)spawn_trainer(system, session, "train", Config(settings), options, {self});
    std::optional<Result> result;
    self->receive_while([&] { return !result; })(
        [&](const RunStarted& news) { begun = news.attempt == 2 ? now_s() : begun; }, [](const ReportArrived&) {},
        [](const RunWarning& news) { std::fprintf(stderr, "warning: %s\n", news.text.c_str()); },
        [&](RunEnded& news) { result = std::move(news.result); });
    if (!result->ok()) throw Failure{result->error->code, result->error->message};
  }
  double fault = 0, survivor = 0, entered = 0, resumed = 0;
  std::int64_t reached = 0, restarted = 0;
  for (const auto& file : std::filesystem::directory_iterator{scratch.path}) {
    if (file.path().filename().string().rfind("events.", 0) != 0) continue;
    std::ifstream lines{file.path()};
    for (std::string line; std::getline(lines, line);) {
      const auto event = Json::parse(line);
      const double t = event["t"];
      const std::string what = event["event"];
      const bool again = event.value("attempt", 1) == 2;
      if (what == "fault") fault = t, reached = event["step"];
      if (what == "survivor") survivor = t;
      if (what == "entered" && again) entered = std::max(entered, t);
      if (what == "first_step" && again) resumed = std::max(resumed, t), restarted = event["step"];
    }
  }
  return {{"survivor_s", survivor > 0 ? survivor - fault : 0}, {"begun_s", begun - fault}, {"entered_s", entered - fault},
          {"resumed_s", resumed - fault}, {"steps_lost", reached - restarted}};
}

Json medians(const Session& session, const Case& c, int runs) {
  std::map<std::string, std::vector<double>> values;
  for (int i = 0; i < runs; ++i) {
    const auto times = run(session, c);
    for (const auto& [key, value] : times.items()) values[key].push_back(value);
  }
  Json result;
  for (const auto& key : {"survivor_s", "begun_s", "entered_s", "resumed_s", "steps_lost"}) result[key] = median(values[key]);
  result["most_s"] = *std::max_element(values["resumed_s"].begin(), values["resumed_s"].end());
  return result;
}

}  // namespace

int main(int argc, char** argv) try {
  const Session session{argc, argv, {{"train", train}}};
  Case c;
  int runs = 3;
  std::string file;
  for (int i = 1; i + 1 < argc; i += 2) {
    const std::string option = argv[i], value = argv[i + 1];
    if (option == "--case") c.name = value;
    else if (option == "--state-mb") c.state_mb = std::stoll(value);
    else if (option == "--runs") runs = std::stoi(value);
    else if (option == "--json") file = value;
    else throw Failure{Errc::InvalidArgument, "unknown option " + option};
  }
  if (!c.name.empty()) {
    std::cout << medians(session, c, runs).dump() << std::endl;
    return 0;
  }
  Json figures = Json::array();
  const std::map<std::string, double> goals{{"throw", 0.3}, {"kill", 1.5}, {"spare", 0.3}, {"stop", 4.0}};
  for (const auto& [name, goal] : goals) {
    const auto times = medians(session, {name, c.state_mb}, runs);
    std::fprintf(stderr, "%s: %s\n", name.c_str(), times.dump().c_str());
    figures.push_back(figure("recovery_" + name, times["resumed_s"], {"s", goal, "goal"}, static_cast<std::size_t>(runs)));
    if (name == "kill") figures.push_back(figure("recovery_detection", times["survivor_s"], {"s", 0.05, "goal"}, static_cast<std::size_t>(runs)));
  }
  if (!file.empty()) std::ofstream{file} << figures.dump(1) << "\n";
  return 0;
} catch (const std::exception& error) {
  std::fprintf(stderr, "recovery_bench: %s\n", error.what());
  return 1;
}
