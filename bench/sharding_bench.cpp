// Sharding's cost: training steps of two ranks under each strategy beside two independent processes, alternating in one run.
//
//   sharding_bench [--json FILE] [--only WORD]  all figures (about 5 minutes), or those with WORD in their name
//   sharding_bench --case TASK [--ranks KIND]   only ours, as "encoder_fp32+zero3", by threads (default) or processes; the last line
//                                               is one JSON object
#include "step_sides.hpp"

#include <troupe/errors.hpp>

#include <fstream>
#include <iostream>
#include <map>

namespace {

using namespace troupe;
using namespace troupe::bench;

struct Model {
  std::string name;
  int rounds, steps, warm;
  double cpu_overhead, step_overhead;  // that may be added; step_overhead 0: not a goal
};
const std::vector<Model> models{{"encoder_fp32", 3, 3, 2, 0.05, 0}, {"encoder_bf16", 3, 5, 2, 0.10, 0}, {"mlp", 3, 400, 100, 0, 0.5}};
const std::vector<std::string> strategies{"zero1", "zero2", "zero3"};

/// Ours in both placements, and the independent processes, all trained in turn.
void measure(const Model& model, const std::string& strategy, Side& alone, nlohmann::ordered_json& figures) {
  const auto task = model.name + "+" + strategy;
  Side threads{"threads", task}, processes{"processes", task};
  for (auto* side : {&threads, &processes}) side->run(model.warm, false);
  const auto first = alone.step_s.size();
  for (int round = 0; round < model.rounds; ++round) {
    for (auto* side : {&threads, &alone, &processes}) side->run(model.steps);
  }
  const auto since = [first](const std::vector<double>& values) { return std::vector<double>(values.begin() + static_cast<std::ptrdiff_t>(first), values.end()); };
  for (const auto& [suffix, ours] : {std::pair{"_threads", &threads}, std::pair{"_processes", &processes}}) {
    const auto name = "sharding_" + model.name + "_" + strategy + suffix;
    if (model.cpu_overhead > 0) figures.push_back(overhead_figure(name + "_cpu_overhead", ours->cpu_s, since(alone.cpu_s), model.cpu_overhead));
    if (model.step_overhead > 0) figures.push_back(overhead_figure(name + "_overhead", ours->step_s, since(alone.step_s), model.step_overhead));
  }
}

int run_all(const std::string& json_file, const std::string& only) {
  auto figures = nlohmann::ordered_json::array();
  std::printf("%-44s %10s %12s\n", "per step and rank", "2 ranks", "independent");
  for (const auto& model : models) {
    Side alone{"independent", model.name};
    alone.run(model.warm, false);
    for (const auto& strategy : strategies) {
      if ((model.name + "+" + strategy).find(only) != std::string::npos) measure(model, strategy, alone, figures);
    }
  }
  if (!json_file.empty()) std::ofstream{json_file} << figures.dump(1) << "\n";
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    if (const int worker = be_worker_if_asked(argc, argv); worker >= 0) return worker;
    std::map<std::string, std::string> words;
    for (int i = 1; i + 1 < argc; i += 2) words[argv[i]] = argv[i + 1];
    if (argc % 2 == 0 || (argc > 1 && words.begin()->first[0] != '-')) {
      std::cerr << "usage: sharding_bench [--json FILE] [--only WORD] | --case TASK [--ranks threads|processes]\n";
      return 2;
    }
    if (words.contains("--case")) {
      const bool small = words["--case"].starts_with("mlp");
      run_case(words["--case"], small ? 400 : 4, small ? 100 : 2, words.contains("--ranks") ? words["--ranks"] : "threads");
      return 0;
    }
    return run_all(words["--json"], words["--only"]);
  } catch (const std::exception& error) {
    std::cerr << "sharding_bench: " << error.what() << "\n";
    return 1;
  }
}
