// Overlap: how much of a step's communication hides behind computing. Two thread ranks over a wire that takes its time but
// no processor (delayed_communicator): a simulated wire, since two cores have none of their own.
//
//   overlap_bench [--json FILE]    a table and FILE (about 30 s)
#include "fake_context.hpp"
#include "layer_stack.hpp"

#include <troupe/accelerator.hpp>
#include <troupe/delayed_communicator.hpp>

#include <ATen/ops/randn.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <fstream>
#include <iostream>
#include <nlohmann/json.hpp>
#include <thread>

namespace {

using namespace troupe;
using Clock = std::chrono::steady_clock;

struct Times {
  double step_s = 0, backward_s = 0;
};

/// Medians of rank 0 over a wire.
Times train(const ShardingOptions& sharding, const Wire& wire) {
  auto seats = make_thread_group(2, std::chrono::seconds{60});
  Times times;
  std::vector<std::thread> threads;
  for (std::size_t r = 0; r < 2; ++r) {
    threads.emplace_back([&, r] {
      const auto group = delayed_communicator(std::move(seats[r]), wire);
      test::FakeContext context{*group};
      Accelerator accelerator{context, {.sharding = sharding}};
      bench::Stack model{12, 1024, /*bias=*/true};
      SGD optimizer{model->parameters(), {.lr = 1e-6}};
      accelerator.prepare(model, optimizer);
      const auto x = at::randn({384, 1024});
      std::vector<double> steps, backwards;
      for (int i = 0; i < 12; ++i) {
        const auto begin = Clock::now();
        const auto loss = model(x).sum();
        const auto middle = Clock::now();
        accelerator.backward(loss);
        const auto end = Clock::now();
        optimizer.step();
        optimizer.zero_grad();
        if (i < 3) continue;
        steps.push_back(std::chrono::duration<double>(Clock::now() - begin).count());
        backwards.push_back(std::chrono::duration<double>(end - middle).count());
      }
      if (r != 0) return;
      const auto median = [](std::vector<double> v) {
        std::sort(v.begin(), v.end());
        return v[v.size() / 2];
      };
      times = {.step_s = median(steps), .backward_s = median(backwards)};
    });
  }
  for (auto& thread : threads) thread.join();
  return times;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    const std::vector<std::string> words(argv + 1, argv + argc);
    if (!words.empty() && (words.size() != 2 || words[0] != "--json")) {
      std::cerr << "usage: overlap_bench [--json FILE]\n";
      return 2;
    }
    constexpr double unit_bytes = 4.0 * (1024 * 1024 + 1024);
    auto figures = nlohmann::ordered_json::array();
    for (const auto& [name, strategy, passes] : {std::tuple{"zero2", ShardingStrategy::ShardGradients, 2.0}, {"zero3", ShardingStrategy::ShardParameters, 3.0}}) {
      const ShardingOptions sharding{.strategy = strategy, .reduce_bucket_elements = 1024 * 1024};
      std::vector<double> hidden;
      for (int round = 0; round < 3; ++round) {
        const auto plain = train(sharding, {.bytes_per_second = 1e12});
        // The wire is busy for half of backward in a step: the parts that are sent are half of each buffer, with two ranks.
        const double wire_s = 0.5 * plain.backward_s;
        const auto slow = train(sharding, {.bytes_per_second = passes * 12 * unit_bytes / 2 / wire_s});
        hidden.push_back(1 - std::max(0.0, slow.step_s - plain.step_s) / wire_s);
        std::printf("overlap_%s: step %.1f ms, over the wire %.1f ms, wire busy %.1f ms, hidden %.0f %%\n", name, 1e3 * plain.step_s, 1e3 * slow.step_s,
                    1e3 * wire_s, 100 * hidden.back());
      }
      std::sort(hidden.begin(), hidden.end());
      figures.push_back({{"figure", std::string{"overlap_"} + name}, {"ours", hidden[1]}, {"peer", 1.0}, {"peer_name", "all communication hidden (simulated wire)"},
                         {"unit", "share"}, {"ratio", hidden[1]}, {"goal", 0.8}, {"holds", hidden[1] >= 0.8}, {"runs", 3}});
    }
    if (!words.empty()) std::ofstream{words[1]} << figures.dump(1) << "\n";
    return 0;
  } catch (const std::exception& error) {
    std::cerr << "overlap_bench: " << error.what() << "\n";
    return 1;
  }
}
