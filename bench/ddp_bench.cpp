// DDP's cost: training steps of two ranks beside two independent processes that never talk, alternating in one run.
//
//   ddp_bench [--json FILE]                     all figures (about 80 s), a table and FILE
//   ddp_bench --case encoder_fp32|encoder_bf16|mlp   only ours; the last line is one JSON object
#include "step_sides.hpp"

#include <troupe/errors.hpp>

#include <algorithm>
#include <fstream>
#include <iostream>

namespace {

using namespace troupe;
using namespace troupe::bench;

struct Case {
  std::string name;
  int rounds, steps, warm;
  double overhead;  // of wall and processor time that may be added
};
const std::vector<Case> cases{{"encoder_fp32", 9, 3, 2, 0.02}, {"encoder_bf16", 9, 6, 3, 0.04}, {"mlp", 5, 400, 100, 0.37}};

int run_all(const std::string& json_file) {
  auto figures = nlohmann::ordered_json::array();
  std::printf("%-36s %12s %12s\n", "per step and rank", "DDP, 2 ranks", "independent");
  for (const auto& c : cases) {
    Side threads{"threads", c.name}, processes{"processes", c.name}, alone{"independent", c.name}, meeting{"meeting", c.name};
    for (auto* side : {&threads, &processes, &alone, &meeting}) side->run(c.warm, false);
    for (int round = 0; round < c.rounds; ++round) {
      for (auto* side : {&threads, &alone, &processes, &meeting}) side->run(c.steps);
    }
    for (const auto& [suffix, ours] : {std::pair{"", &threads}, std::pair{"_processes", &processes}}) {
      figures.push_back(overhead_figure("ddp_" + c.name + suffix + "_overhead", ours->step_s, alone.step_s, c.overhead));
      figures.push_back(overhead_figure("ddp_" + c.name + suffix + "_cpu_overhead", ours->cpu_s, alone.cpu_s, c.overhead));
      figures.push_back(overhead_figure("ddp_" + c.name + suffix + "_overhead_of_meeting", ours->step_s, meeting.step_s, c.overhead,
                                        "two processes that only meet after every step"));
    }
  }
  if (!json_file.empty()) std::ofstream{json_file} << figures.dump(1) << "\n";
  return 0;
}

int run_one(const std::string& name) {
  const auto found = std::find_if(cases.begin(), cases.end(), [&](const auto& c) { return c.name == name; });
  if (found == cases.end()) throw Failure{Errc::InvalidArgument, "--case " + name + ": not encoder_fp32, encoder_bf16 or mlp"};
  run_case(name, found->steps, found->warm);
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    if (const int worker = be_worker_if_asked(argc, argv); worker >= 0) return worker;
    const std::vector<std::string> words(argv + 1, argv + argc);
    if (words.size() == 2 && words[0] == "--case") return run_one(words[1]);
    if (words.empty()) return run_all("");
    if (words.size() == 2 && words[0] == "--json") return run_all(words[1]);
    std::cerr << "usage: ddp_bench [--json FILE | --case encoder_fp32|encoder_bf16|mlp]\n";
    return 2;
  } catch (const std::exception& error) {
    std::cerr << "ddp_bench: " << error.what() << "\n";
    return 1;
  }
}
