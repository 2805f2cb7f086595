// Samples a second of a DataLoader over tokenised pairs: 50,000 lists of 20 to 64 ids, batches of 32 padded to their longest, shuffled.
//
//   data_loader_bench [--workers N] [--processes] [--epochs N] [--json FILE]
//       without --workers: the caller's thread, 2 threads and 2 processes, one after another. Each is a line of JSON: samples_per_s is the median
//       epoch's, by wall time; cpu_us is processor time a sample, children counted.
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <sys/resource.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <fstream>
#include <iostream>
#include <nlohmann/json.hpp>
#include <optional>
#include <random>
#include <string>
#include <troupe/data/data_loader.hpp>
#include <vector>

namespace {

using namespace troupe;
using Clock = std::chrono::steady_clock;
constexpr std::size_t num_samples = 50'000;
constexpr std::int64_t batch_size = 32;

class Pairs final : public MapDataset {
 public:
  Pairs() {
    std::mt19937_64 random{0};
    for (std::size_t i = 0; i < num_samples; ++i) {
      auto& ids = ids_.emplace_back(20 + random() % 45);
      for (auto& id : ids) id = static_cast<std::int64_t>(random() % 30'000);
      labels_.push_back(static_cast<std::int64_t>(random() % 2));
    }
  }
  std::size_t size() const override { return num_samples; }
  TensorDict get(std::size_t index) const override {
    const auto& ids = ids_[index];
    auto tensor = at::empty({std::ssize(ids)}, at::kLong), label = at::empty({}, at::kLong);
    std::memcpy(tensor.mutable_data_ptr<std::int64_t>(), ids.data(), ids.size() * sizeof(std::int64_t));
    *label.mutable_data_ptr<std::int64_t>() = labels_[index];
    return {{"input_ids", std::move(tensor)}, {"labels", std::move(label)}};
  }

 private:
  std::vector<std::vector<std::int64_t>> ids_;
  std::vector<std::int64_t> labels_;
};

Batch pad(std::vector<TensorDict> samples) {
  const auto rows = std::ssize(samples);
  std::int64_t longest = 0;
  for (const auto& sample : samples) longest = std::max(longest, sample["input_ids"].numel());
  const auto ids = at::zeros({rows, longest}, at::kLong), mask = at::zeros({rows, longest}, at::kLong), labels = at::empty({rows}, at::kLong);
  auto* id = ids.mutable_data_ptr<std::int64_t>();
  auto* one = mask.mutable_data_ptr<std::int64_t>();
  auto* label = labels.mutable_data_ptr<std::int64_t>();
  for (const auto& sample : samples) {
    const auto& tensor = sample["input_ids"];
    std::memcpy(id, tensor.const_data_ptr<std::int64_t>(), tensor.nbytes());
    std::fill_n(one, tensor.numel(), 1);
    *label++ = *sample["labels"].const_data_ptr<std::int64_t>();
    id += longest;
    one += longest;
  }
  return {{"input_ids", ids}, {"attention_mask", mask}, {"labels", labels}};
}

double cpu_s(int who) {
  rusage use{};
  getrusage(who, &use);
  const auto seconds = [](const timeval& t) { return static_cast<double>(t.tv_sec) + 1e-6 * static_cast<double>(t.tv_usec); };
  return seconds(use.ru_utime) + seconds(use.ru_stime);
}

nlohmann::ordered_json measure(int workers, bool processes, int epochs) {
  const auto before = cpu_s(RUSAGE_SELF) + cpu_s(RUSAGE_CHILDREN);
  double waited = 0;
  std::vector<double> rates, firsts;
  {
    DataLoaderOptions options{.batch_size = batch_size, .shuffle = true, .seed = 1, .num_workers = workers};
    if (processes) options.worker_processes = WorkerProcesses{"pairs"};
    else options.collate = pad;
    DataLoader loader{std::make_shared<Pairs>(), options};
    for (int e = 0; e < epochs; ++e) {
      std::int64_t count = 0;
      std::optional<Clock::time_point> first;
      for (const auto& batch : loader) {
        if (!first) first = Clock::now();
        else count += batch["labels"].numel();
      }
      rates.push_back(static_cast<double>(count) / std::chrono::duration<double>(Clock::now() - *first).count());
      firsts.push_back(std::chrono::duration<double>(loader.stats().first_wait).count());
      waited = std::chrono::duration<double>(loader.stats().wait).count();
    }
  }
  std::sort(rates.begin(), rates.end());
  const auto cpu = cpu_s(RUSAGE_SELF) + cpu_s(RUSAGE_CHILDREN) - before;
  return {{"workers", workers}, {"processes", processes}, {"samples_per_s", rates[rates.size() / 2]}, {"first_batch_s", firsts.back()},
          {"cpu_us", 1e6 * cpu / (static_cast<double>(num_samples) * epochs)}, {"waited_s", waited}};
}

}  // namespace

int main(int argc, char** argv) {
  serve_data_workers({{"pairs", [](const Config&) { return WorkerData{.map = std::make_shared<Pairs>(), .collate = pad}; }}});
  std::optional<int> workers;
  bool processes = false;
  int epochs = 5;
  std::string file;
  for (int a = 1; a < argc; ++a) {
    const std::string name = argv[a];
    if (name == "--processes") processes = true;
    else if (name == "--workers" && a + 1 < argc) workers = std::stoi(argv[++a]);
    else if (name == "--epochs" && a + 1 < argc) epochs = std::stoi(argv[++a]);
    else if (name == "--json" && a + 1 < argc) file = argv[++a];
    else return std::cerr << "usage: data_loader_bench [--workers N] [--processes] [--epochs N] [--json FILE]\n", 2;
  }
  auto figures = nlohmann::ordered_json::array();
  if (workers) figures.push_back(measure(*workers, processes, epochs));
  else
    for (const auto& [count, apart] : {std::pair{0, false}, {2, false}, {2, true}}) figures.push_back(measure(count, apart, epochs));
  for (const auto& figure : figures) std::cout << figure.dump() << "\n";
  if (!file.empty()) std::ofstream{file} << figures.dump(1) << "\n";
  return 0;
}
