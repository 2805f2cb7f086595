// Snapshots in memory: what one after every update adds to the step. Two ranks, 100 MB of state (fp32 weights and AdamW's moments), steps
// of about 200 ms with and without one in turn; beside a memcpy of a rank's share. And what looking for bad numbers adds (Policy::Skip).
// Ranks are threads, then processes.
//
//   snapshot_bench [--json FILE] [--dir DIR_IN_MEMORY] [--strategy ddp|zero2|zero3] [--rounds N]    a table and FILE (about 32 s)
#include "comm_ranks.hpp"
#include "control_figures.hpp"
#include "fake_context.hpp"
#include "layer_stack.hpp"

#include <troupe/accelerator.hpp>
#include <troupe/memory_snapshot.hpp>

#include <ATen/ops/randn.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <iostream>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <vector>

#include <stdlib.h>

namespace {

using namespace troupe;
namespace ranks = troupe::testing_ranks;
using bench::median;
using bench::now_s;
using bench::slowest;

constexpr int num_ranks = 2;
constexpr int num_layers = 32;
constexpr std::int64_t width = 512;  // 32 layers of 262,144 weights: 100.7 MB with their state
constexpr std::size_t share = std::size_t{num_layers} * width * width * 4 * 3 / num_ranks;
constexpr double wanted_step = 0.2;
constexpr int steps_a_side = 4;

/// A model and its training.
struct Side {
  Side(TrainContext& context, const AcceleratorOptions& options) : accelerator(context, options), optimizer(model->parameters(), {.lr = 1e-6}) {
    accelerator.prepare(model, optimizer);
  }
  double step(const at::Tensor& x, bool snapshot) {
    const auto begin = now_s();
    accelerator.backward(model(x).sum());
    optimizer.step();
    optimizer.zero_grad();
    const auto before = now_s();
    if (snapshot && !accelerator.snapshot()) throw std::runtime_error("a snapshot was not taken");
    copying = now_s() - before;
    return now_s() - begin;
  }
  Accelerator accelerator;
  bench::Stack model{num_layers, width};
  AdamW optimizer;
  double copying = 0;  // of the last step
};

void train(Communicator& group, const std::string& argument) {
  std::istringstream arguments{argument};
  std::string strategy, directory;
  int rounds = 0;
  arguments >> strategy >> rounds >> directory;
  test::FakeContext context{group, {}, {directory, 1}};
  const auto kind = strategy == "ddp" ? ShardingStrategy::Replicate : strategy == "zero2" ? ShardingStrategy::ShardGradients : ShardingStrategy::ShardParameters;
  AcceleratorOptions options;
  options.sharding.strategy = kind;
  Side side{context, options};
  options.bad_numbers.policy = BadNumbers::Policy::Skip;
  Side looking{context, options};
  std::int64_t rows = 64;
  auto x = at::randn({rows, width});
  for (int i = 0; i < 3; ++i) side.step(x, false);
  for (int again = 0; again < 3; ++again) {  // a part of a step does not grow with its rows
    std::vector<double> first;
    for (int i = 0; i < 3; ++i) first.push_back(slowest(group, side.step(x, false)));
    rows = std::max<std::int64_t>(8, static_cast<std::int64_t>(static_cast<double>(rows) * wanted_step / median(first)));
    x = at::randn({rows, width});
  }
  for (int i = 0; i < 4; ++i) side.step(x, true);  // takes the memory
  for (int i = 0; i < 3; ++i) looking.step(x, false);

  const std::vector<std::byte> from(share, std::byte{1});
  std::vector<std::byte> to(share, std::byte{2});
  std::vector<double> plain, taken, looked, copies, memcpys;
  for (int round = 0; round < rounds; ++round) {
    for (const bool snapshot : {round % 2 == 0, round % 2 != 0}) {
      for (int i = 0; i < steps_a_side; ++i) {
        (snapshot ? taken : plain).push_back(slowest(group, side.step(x, snapshot)));
        if (snapshot) copies.push_back(slowest(group, side.copying));
      }
    }
    for (int i = 0; i < steps_a_side; ++i) looked.push_back(slowest(group, looking.step(x, false)));
    group.barrier().wait().or_throw();
    const auto begin = now_s();
    std::memcpy(to.data(), from.data(), share);
    memcpys.push_back(slowest(group, now_s() - begin));
  }
  if (group.rank() != 0) return;
  std::ostringstream line;
  line << "measured " << median(plain) << " " << median(taken) << " " << median(copies) << " " << median(memcpys) << " " << median(looked) << " " << static_cast<int>(to[share / 2]);
  ranks::say(line.str());
}

}  // namespace

int main(int argc, char** argv) {
  ranks::registry().bodies["train"] = train;
  if (argc == 9 && std::string{argv[1]} == "--rank") return ranks::main_of_ranks(argc, argv);
  try {
    std::string json, strategy = "ddp", parent = "/dev/shm";
    int rounds = 6;
    for (int i = 1; i + 1 < argc; i += 2) {
      const std::string key = argv[i];
      if (key == "--json") json = argv[i + 1];
      else if (key == "--dir") parent = argv[i + 1];
      else if (key == "--strategy") strategy = argv[i + 1];
      else if (key == "--rounds") rounds = std::stoi(argv[i + 1]);
      else throw std::invalid_argument(key);
    }
    auto figures = nlohmann::ordered_json::array();
    for (const std::string placement : {"threads", "shared_memory"}) {
      auto directory = parent + "/troupe-snapshot-bench-XXXXXX";
      if (!::mkdtemp(directory.data())) throw std::runtime_error("cannot make " + directory);
      const Scope remove{[&] { std::filesystem::remove_all(directory); }};
      ranks::Ranks group{placement, num_ranks, "train", strategy + " " + std::to_string(rounds) + " " + directory};
      const auto results = group.join();
      if (const auto failed = ranks::failures(results); !failed.empty()) throw std::runtime_error(failed);
      std::istringstream line{results[0].text.substr(results[0].text.find("measured"))};
      std::string word;
      double plain = 0, taken = 0, copied = 0, memcpied = 0, looked = 0;
      line >> word >> plain >> taken >> copied >> memcpied >> looked;
      const auto cost = taken / plain - 1;
      const std::string name = placement == "threads" ? "threads" : "processes";
      std::printf("snapshots, %s, %s: a step of %.1f ms takes %.1f ms (%+.2f %%); the snapshot itself %.2f ms, a memcpy of a rank's share %.2f ms (%.2f times)\n",
                  strategy.c_str(), name.c_str(), 1e3 * plain, 1e3 * taken, 1e2 * cost, 1e3 * copied, 1e3 * memcpied, copied / memcpied);
      std::printf("bad numbers, %s, %s: looking for them takes %.1f ms (%+.2f %%)\n", strategy.c_str(), name.c_str(), 1e3 * looked, 1e2 * (looked / plain - 1));
      const auto runs = static_cast<std::size_t>(rounds * steps_a_side);
      figures.push_back(bench::figure("bad_numbers_step_" + name, looked, {"s", plain, "the same steps without looking", false, 1 / 1.03}, runs));
      figures.push_back(bench::figure("snapshot_step_" + name, taken, {"s", plain, "the same steps without a snapshot", false, 1 / 1.03}, runs));
      figures.push_back(bench::figure("snapshot_copy_" + name, copied, {"s", memcpied, "memcpy of a rank's share, both ranks at once", false, 1 / 1.3}, runs));
    }
    if (!json.empty()) std::ofstream{json} << figures.dump(1) << "\n";
    return 0;
  } catch (const std::exception& error) {
    std::cerr << "snapshot_bench: " << error.what() << "\n";
    return 1;
  }
}
