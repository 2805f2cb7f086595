// An asynchronous save: what the step waits for, beside a memcpy of the same bytes, and how much the loop slows while the
// save is written. Two thread ranks, 1.5 GB of state (fp32 weights and AdamW's moments), on a disk.
//
//   checkpoint_async_bench [--json FILE] [--dir DIR] [--strategy zero3|zero2|ddp] [--rounds N] [--batch N]    a table and FILE (about 60 s)
//   … --loop products       instead of training each rank multiplies small matrices, as beside peers; stdout is always {"wait_s", "slowdown", "save_s", "save_cpu_s"}
//
// Slowing: while a save is written for S seconds, the steps that begin meanwhile take X seconds longer than quiet ones; the loop then did
// the work of S - X seconds in S. So a step that is longer than the save hides nothing. Beside it, what noise changes little: the processor
// time of the threads that write, of both ranks together.
#include "control_figures.hpp"
#include "fake_context.hpp"
#include "layer_stack.hpp"

#include <troupe/accelerator.hpp>
#include <troupe/checkpoint_files.hpp>

#include <ATen/ops/mm.h>
#include <ATen/ops/randn.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <functional>
#include <iostream>
#include <nlohmann/json.hpp>
#include <string>
#include <sys/mman.h>
#include <vector>

namespace {

using namespace troupe;
using bench::median;
using bench::now_s;
using bench::slowest;

constexpr int num_ranks = 2;
constexpr int num_layers = 12;
constexpr std::int64_t width = 3232;  // 12 layers of 10.4 M weights: 1.5 GB with their state

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

/// The slower rank's, by round.
struct Measured {
  std::vector<double> memcpy_s, wait_s, save_s, save_cpu_s, slowdown;
};

/// Processor time so far of all threads that write saves, in seconds.
double writers_cpu_s() {
  double nanoseconds = 0;
  for (const auto& thread : std::filesystem::directory_iterator{"/proc/self/task"}) {
    std::string name;
    double mine = 0;
    std::ifstream{thread.path() / "comm"} >> name;
    if (name.starts_with("troupe-save") || name.starts_with("iou-wrk")) std::ifstream{thread.path() / "schedstat"} >> mine;
    nanoseconds += mine;
  }
  return 1e-9 * nanoseconds;
}

struct Options {
  std::string json, strategy = "zero3", loop = "training";
  std::filesystem::path directory = std::filesystem::current_path();
  int rounds = 6;
  std::int64_t batch = 24;
};

/// What a rank does while its save is written. Steps of training meet the other rank in each; products of small matrices never do.
struct Loop {
  std::function<double()> step;  ///< seconds it took, the slower rank's where they meet
  std::function<bool(bool mine)> over;
};

/// How much longer than quiet steps those took that ran while a save was written for `writing` seconds.
double slowdown_of(const std::vector<double>& busy, double quiet, double writing) {
  double longer = 0;
  for (const auto s : busy) longer += s - quiet;
  return longer < writing ? std::max(1.0, writing / (writing - longer)) : 99;
}

void measure(TrainContext& context, Accelerator& accelerator, const Loop& loop, int rounds, Measured& measured) {
  const std::size_t share = std::size_t{num_layers} * width * width * 4 * 3 / num_ranks;
  const Block from{share}, to{share};
  for (int round = 0; round < rounds; ++round) {
    context.barrier();
    auto begin = now_s();
    std::memcpy(to.data, from.data, share);
    const auto copied = slowest(context.communicator(), now_s() - begin);
    std::vector<double> quiet, busy;
    for (double spent = 0; spent < 3; spent += quiet.back()) quiet.push_back(loop.step());
    const auto cpu_before = writers_cpu_s();
    context.barrier();
    begin = now_s();
    const auto checkpoint = accelerator.checkpoint();
    const auto waited = now_s() - begin;
    std::atomic<double> ended = 0;
    checkpoint.pending()->when_done([&](const Outcome& outcome) {
      outcome.or_throw();
      ended = now_s() - begin;
    });
    do busy.push_back(loop.step());
    while (!loop.over(checkpoint.pending()->done()));
    accelerator.wait_for_saves().or_throw();
    const auto saved = slowest(context.communicator(), ended), all_waited = slowest(context.communicator(), waited), writing = saved - all_waited;
    const auto slowdown = slowest(context.communicator(), slowdown_of(busy, median(quiet), writing));
    const auto cpu = writers_cpu_s() - cpu_before;  // all saves have ended, no writer has
    context.barrier();
    if (context.world_rank() != 0) continue;
    std::filesystem::remove_all(checkpoint.path());
    if (round == 0) continue;  // memory was taken from the system
    measured.memcpy_s.push_back(copied);
    measured.wait_s.push_back(all_waited);
    measured.save_s.push_back(saved);
    measured.save_cpu_s.push_back(cpu);
    measured.slowdown.push_back(slowdown);
    std::fprintf(stderr, "round %d: memcpy %.0f ms, the step waits %.0f ms; written for %.2f s, %.0f ms of them on a processor; %zu steps of %.0f ms: %.2f times as long meanwhile\n",
                 round, 1e3 * copied, 1e3 * all_waited, writing, 1e3 * cpu, busy.size(), 1e3 * median(quiet), slowdown);
  }
}

void run_rank(TrainContext& context, const Options& options, Measured& measured) {
  const auto strategy = options.strategy == "ddp"     ? ShardingStrategy::Replicate
                        : options.strategy == "zero2" ? ShardingStrategy::ShardGradients
                                                      : ShardingStrategy::ShardParameters;
  Accelerator accelerator{context, {.sharding = {.strategy = strategy}, .checkpoint = {.async = true}}};
  bench::Stack model{num_layers, width};
  AdamW optimizer{model->parameters(), {.lr = 1e-6}};
  accelerator.prepare(model, optimizer);
  const auto x = at::randn({options.batch, width}), square = at::randn({384, 384});
  const auto train = [&] {
    const auto begin = now_s();
    accelerator.backward(model(x).sum());
    optimizer.step();
    optimizer.zero_grad();
    return slowest(context.communicator(), now_s() - begin);
  };
  const auto multiply = [&] {
    const auto begin = now_s();
    for (int i = 0; i < 10; ++i) (void)at::mm(square, square);
    return now_s() - begin;
  };
  const auto over_for_all = [&](bool mine) {
    double done = mine;
    context.communicator().all_reduce({&done, sizeof done, DType::F64}, ReduceOp::Min).wait().or_throw();
    return done != 0;
  };
  for (int i = 0; i < 3; ++i) train();
  const bool small = options.loop == "products";
  measure(context, accelerator, small ? Loop{multiply, [](bool mine) { return mine; }} : Loop{train, over_for_all}, options.rounds + 1, measured);
}

}  // namespace

int main(int argc, char** argv) {
  try {
    Options options;
    for (int i = 1; i + 1 < argc; i += 2) {
      const std::string key = argv[i];
      if (key == "--json") options.json = argv[i + 1];
      else if (key == "--dir") options.directory = argv[i + 1];
      else if (key == "--strategy") options.strategy = argv[i + 1];
      else if (key == "--loop") options.loop = argv[i + 1];
      else if (key == "--batch") options.batch = std::stoi(argv[i + 1]);
      else if (key == "--rounds") options.rounds = std::stoi(argv[i + 1]);
      else throw std::invalid_argument(key);
    }
    const auto storage = options.directory / "checkpoint_async_bench.tmp";
    Measured measured;
    const Scope remove{[&] { std::filesystem::remove_all(storage); }};
    test::run_ranks(num_ranks, [&](TrainContext& context) { run_rank(context, options, measured); }, storage);
    const auto copied = median(measured.memcpy_s), waited = median(measured.wait_s);
    const auto slowdown = median(measured.slowdown);
    std::fprintf(stderr, "checkpoint_async %s: the step waits %.1f ms, memcpy of its share %.1f ms (%.2f times); the loop takes %.2f times as long meanwhile; saved in %.2f s, %.0f ms of processor time\n",
                 options.strategy.c_str(), 1e3 * waited, 1e3 * copied, waited / copied, slowdown, median(measured.save_s), 1e3 * median(measured.save_cpu_s));
    std::printf("{\"wait_s\": %.6f, \"slowdown\": %.4f, \"save_s\": %.4f, \"save_cpu_s\": %.4f}\n", waited, slowdown, median(measured.save_s), median(measured.save_cpu_s));
    auto figures = nlohmann::ordered_json::array();
    const auto runs = measured.wait_s.size();
    figures.push_back(bench::figure("checkpoint_async_wait", waited, {"s", copied, "memcpy of the state by both ranks", false, 1 / 1.3}, runs));
    figures.push_back(bench::figure("checkpoint_async_slowdown", slowdown, {"times", 1, "the same steps without a save", false, 1 / 1.15}, runs));
    if (!options.json.empty()) std::ofstream{options.json} << figures.dump(1) << "\n";
    return 0;
  } catch (const std::exception& error) {
    std::cerr << "checkpoint_async_bench: " << error.what() << "\n";
    return 1;
  }
}
