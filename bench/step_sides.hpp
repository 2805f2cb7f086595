#pragma once

#include <nlohmann/json.hpp>

#include <sys/types.h>

#include <cstdio>
#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace troupe {
class SharedGroup;
}

/// Training steps of two ranks, or of two processes that never talk, as workers that train when they are told to.
///
/// A task is a model and what trains it, "encoder_fp32", "encoder_bf16", "mlp", with a strategy: "encoder_fp32+zero3" (zero1,
/// zero2, zero3, fsdp); none is DDP.
///   encoder: BERT, hidden 512, 4 layers, 8 heads, 2048, 30522 words, no dropout; batch 8 x 128 tokens a rank, AdamW.
///   mlp: 256-256-256-256-256-10, batch 32 a rank, AdamW.
namespace troupe::bench {

[[nodiscard]] double median(std::vector<double> values);

/// A worker process and the two pipes to it.
class Worker {
 public:
  Worker(const std::string& kind, int rank, const std::string& task, int fd);
  ~Worker();
  Worker(const Worker&) = delete;
  void start(int steps);
  /// Median seconds a step, processor seconds a step and rank, peak resident bytes a rank.
  struct Figures {
    double step_s = 0, cpu_s = 0, peak_bytes = 0;
  };
  [[nodiscard]] Figures finish();

 private:
  pid_t pid_ = 0;
  FILE* to_ = nullptr;
  FILE* from_ = nullptr;
};

/// The workers of one kind and task: "threads" and "processes" are two ranks, "independent" two processes that never talk, and
/// "meeting" two that only wait for each other after every step: what the slower one of two costs on this machine. `run` trains on all at once.
struct Side {
  Side(const std::string& kind, const std::string& task);
  ~Side();
  void run(int steps, bool count = true);

  std::unique_ptr<SharedGroup> group;
  std::vector<std::unique_ptr<Worker>> workers;
  std::vector<double> step_s, cpu_s;
  double peak_bytes = 0;
};

/// `ours` beside `peer`, both of one length, paired; holds when ours takes at most (1 + overhead) times as long.
[[nodiscard]] nlohmann::ordered_json overhead_figure(const std::string& name, const std::vector<double>& ours, const std::vector<double>& peer,
                                                     double overhead, const std::string& peer_name = "two independent processes");

/// The program as a worker: `argv` is "--worker KIND RANK TASK". -1: it was not started as one.
[[nodiscard]] int be_worker_if_asked(int argc, char** argv);

/// Trains `task` on two ranks ("threads" or "processes") three times and prints one JSON object. peak_bytes is a rank's: of threads the
/// process's peak divided by two, of processes the larger one's.
void run_case(const std::string& task, int steps, int warm, const std::string& kind = "threads");

}  // namespace troupe::bench
