// An asynchronous save: what the step waits for, beside a memcpy of the same bytes, and how much the loop slows while the
// save is written. Two thread ranks, 1.5 GB of state (fp32 weights and AdamW's moments), on a disk.
//
//   checkpoint_async_bench [--json FILE] [--dir DIR] [--strategy zero3|zero2|ddp] [--rounds N]    a table and FILE (about 60 s)
#include "fake_context.hpp"

#include <troupe/accelerator.hpp>
#include <troupe/checkpoint_files.hpp>
#include <troupe/unit.hpp>

#include <ATen/ops/randn.h>
#include <ATen/ops/relu.h>
#include <torch/nn/modules/linear.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <iostream>
#include <mutex>
#include <nlohmann/json.hpp>
#include <string>
#include <sys/mman.h>
#include <vector>

namespace {

using namespace troupe;
using Clock = std::chrono::steady_clock;

constexpr int num_ranks = 2;
constexpr int num_layers = 12;
constexpr std::int64_t width = 3232;  // 12 layers of 10.4 M weights: 1.5 GB with their state

struct LayerImpl : Unit {
  LayerImpl() : linear(register_module("linear", torch::nn::Linear(torch::nn::LinearOptions(width, width).bias(false)))) {}
  at::Tensor forward(const at::Tensor& x) { return at::relu(linear(x)); }
  torch::nn::Linear linear;
};
TROUPE_UNIT(Layer);

struct StackImpl : Unit {
  StackImpl() {
    for (int i = 0; i < num_layers; ++i) layers.push_back(register_module("layer" + std::to_string(i), Layer()));
  }
  at::Tensor forward(at::Tensor x) {
    for (auto& layer : layers) x = layer(x);
    return x;
  }
  std::vector<Layer> layers;
};
TROUPE_UNIT(Stack);

double since(Clock::time_point begin) { return std::chrono::duration<double>(Clock::now() - begin).count(); }

double median(std::vector<double> v) {
  std::sort(v.begin(), v.end());
  return v.empty() ? 0 : v[v.size() / 2];
}

/// Memory that is there, on pages as large as the snapshot's.
struct Block {
  explicit Block(std::size_t n) : bytes(n), data(static_cast<std::byte*>(::mmap(nullptr, n, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0))) {
    ::madvise(data, bytes, MADV_HUGEPAGE);
    std::memset(data, 1, bytes);
  }
  ~Block() { ::munmap(data, bytes); }
  Block(const Block&) = delete;
  Block& operator=(const Block&) = delete;
  std::size_t bytes;
  std::byte* data;
};

/// The slowest rank's, by round.
struct Measured {
  std::mutex mutex;
  std::vector<double> memcpy_s, wait_s, quiet_s, busy_s, save_s;
  double slowest(TrainContext& context, double mine) {
    context.communicator().all_reduce({&mine, sizeof mine, DType::F64}, ReduceOp::Max).wait().or_throw();
    return mine;
  }
};

void run_rank(TrainContext& context, ShardingStrategy strategy, int rounds, Measured& measured) {
  Accelerator accelerator{context, {.sharding = {.strategy = strategy}, .checkpoint = {.async = true}}};
  Stack model;
  AdamW optimizer{model->parameters(), {.lr = 1e-6}};
  accelerator.prepare(model, optimizer);
  const auto x = at::randn({96, width});
  const auto step = [&] {
    const auto begin = Clock::now();
    accelerator.backward(model(x).sum());
    optimizer.step();
    optimizer.zero_grad();
    return since(begin);
  };
  for (int i = 0; i < 3; ++i) step();
  const std::size_t share = std::size_t{num_layers} * width * width * 4 * 3 / num_ranks;
  const Block from{share}, to{share};
  const bool main = context.world_rank() == 0;
  for (int round = 0; round < rounds; ++round) {
    context.barrier();
    auto begin = Clock::now();
    std::memcpy(to.data, from.data, share);
    const auto copied = measured.slowest(context, since(begin));
    std::vector<double> quiet;
    for (int i = 0; i < 6; ++i) quiet.push_back(measured.slowest(context, step()));
    context.barrier();
    begin = Clock::now();
    const auto checkpoint = accelerator.checkpoint();
    const auto waited = measured.slowest(context, since(begin));
    double ended = 0;
    std::mutex mutex;
    checkpoint.pending()->when_done([&](const Outcome& outcome) {
      outcome.or_throw();
      const std::scoped_lock lock{mutex};
      ended = since(begin);
    });
    std::vector<double> busy;
    for (bool over = false; !over;) {
      busy.push_back(measured.slowest(context, step()));
      double done = checkpoint.pending()->done();
      context.communicator().all_reduce({&done, sizeof done, DType::F64}, ReduceOp::Min).wait().or_throw();
      over = done != 0;
    }
    accelerator.wait_for_saves().or_throw();
    const auto saved = measured.slowest(context, ended);
    context.barrier();
    if (main) {
      std::filesystem::remove_all(checkpoint.path());
      if (round == 0) continue;  // memory was taken from the system
      measured.memcpy_s.push_back(copied);
      measured.wait_s.push_back(waited);
      measured.save_s.push_back(saved);
      // The step in which the save ended saw only a part of it.
      if (busy.size() > 1) busy.pop_back();
      double sum = 0;
      for (const auto s : busy) sum += s;
      measured.busy_s.push_back(sum / static_cast<double>(busy.size()));
      measured.quiet_s.push_back(median(quiet));
      std::printf("round %d: memcpy %.0f ms, the step waits %.0f ms; saved after %.2f s; steps of %.0f ms take %.0f ms meanwhile (%zu of them)\n", round,
                  1e3 * copied, 1e3 * waited, saved, 1e3 * median(quiet), 1e3 * measured.busy_s.back(), busy.size());
    }
  }
}

}  // namespace

int main(int argc, char** argv) {
  try {
    std::string json, strategy = "zero3";
    std::filesystem::path directory = std::filesystem::current_path();
    int rounds = 6;
    for (int i = 1; i + 1 < argc; i += 2) {
      const std::string key = argv[i];
      if (key == "--json") json = argv[i + 1];
      else if (key == "--dir") directory = argv[i + 1];
      else if (key == "--strategy") strategy = argv[i + 1];
      else if (key == "--rounds") rounds = std::stoi(argv[i + 1]) + 1;
      else throw std::invalid_argument(key);
    }
    const auto storage = directory / "checkpoint_async_bench.tmp";
    Measured measured;
    const Scope remove{[&] { std::filesystem::remove_all(storage); }};
    test::run_ranks(num_ranks, [&](TrainContext& context) {
      run_rank(context, strategy == "ddp" ? ShardingStrategy::Replicate : strategy == "zero2" ? ShardingStrategy::ShardGradients : ShardingStrategy::ShardParameters,
               rounds, measured);
    }, storage);
    const auto copied = median(measured.memcpy_s), waited = median(measured.wait_s);
    std::vector<double> slowdowns;
    for (std::size_t i = 0; i < measured.busy_s.size(); ++i) slowdowns.push_back(measured.busy_s[i] / measured.quiet_s[i]);
    const auto slowdown = median(slowdowns);
    std::printf("checkpoint_async %s: the step waits %.1f ms, memcpy of its share %.1f ms (%.2f times); the loop takes %.2f times as long meanwhile; saved in %.2f s\n",
                strategy.c_str(), 1e3 * waited, 1e3 * copied, waited / copied, slowdown, median(measured.save_s));
    auto figures = nlohmann::ordered_json::array();
    const auto runs = measured.wait_s.size();
    figures.push_back({{"figure", "checkpoint_async_wait"}, {"ours", waited}, {"peer", copied}, {"peer_name", "memcpy of the state by both ranks"},
                       {"unit", "s"}, {"ratio", copied / waited}, {"goal", 1 / 1.3}, {"holds", waited <= 1.3 * copied}, {"runs", runs}});
    figures.push_back({{"figure", "checkpoint_async_slowdown"}, {"ours", slowdown}, {"peer", 1.0}, {"peer_name", "the same steps without a save"},
                       {"unit", "times"}, {"ratio", 1 / slowdown}, {"goal", 1 / 1.15}, {"holds", slowdown <= 1.15}, {"runs", runs}});
    if (!json.empty()) std::ofstream{json} << figures.dump(1) << "\n";
    return 0;
  } catch (const std::exception& error) {
    std::cerr << "checkpoint_async_bench: " << error.what() << "\n";
    return 1;
  }
}
