#include "step_sides.hpp"
#include "fake_context.hpp"

#include <troupe/accelerator.hpp>
#include <troupe/bert.hpp>
#include <troupe/local_groups.hpp>
#include <troupe/unit.hpp>

#include <ATen/ops/cross_entropy_loss.h>
#include <ATen/ops/ones_like.h>
#include <ATen/ops/randint.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/relu.h>
#include <torch/nn/modules/linear.h>

#include <fcntl.h>
#include <sched.h>
#include <spawn.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <barrier>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <iostream>
#include <nlohmann/json.hpp>
#include <sstream>
#include <thread>

extern char** environ;

namespace troupe::bench {

namespace {

using Clock = std::chrono::steady_clock;
constexpr int group_fd = 40;

/// "encoder_fp32+zero3" is {"encoder_fp32", ZeRO-3}.
struct Task {
  std::string model;
  ShardingOptions sharding{};
};

Task parse(const std::string& task) {
  const auto plus = task.find('+');
  Task parsed{.model = task.substr(0, plus)};
  if (plus == std::string::npos) return parsed;
  const auto name = task.substr(plus + 1);
  if (name == "zero1") parsed.sharding.strategy = ShardingStrategy::ShardOptimizer;
  else if (name == "zero2") parsed.sharding.strategy = ShardingStrategy::ShardGradients;
  else if (name == "zero3" || name == "fsdp") parsed.sharding.strategy = ShardingStrategy::ShardParameters;
  else throw Failure{Errc::InvalidArgument, "there is no strategy " + name};
  return parsed;
}

struct MlpImpl : Unit {
  MlpImpl() {
    for (int i = 0; i < 5; ++i) layers.push_back(register_module("l" + std::to_string(i), torch::nn::Linear(256, i < 4 ? 256 : 10)));
  }
  at::Tensor forward(at::Tensor x) {
    for (int i = 0; i < 4; ++i) x = at::relu(layers[static_cast<std::size_t>(i)](x));
    return layers[4](x);
  }
  std::vector<torch::nn::Linear> layers;
};
TROUPE_UNIT(Mlp);

BertConfig encoder_config() {
  BertConfig config;
  config.hidden_size = 512;
  config.num_hidden_layers = 4;
  config.num_attention_heads = 8;
  config.intermediate_size = 2048;
  config.hidden_dropout_prob = config.attention_probs_dropout_prob = 0;
  return config;
}

/// One rank's model, data and optimizer.
class Trainee {
 public:
  Trainee(const Task& task, Communicator& communicator)
      : context_(communicator),
        accelerator_(context_, {.mixed_precision = task.model == "encoder_bf16" ? Precision::BF16 : Precision::No, .sharding = task.sharding}) {
    set_seed(static_cast<std::uint64_t>(communicator.rank()));
    if (task.model == "mlp") {
      mlp_ = Mlp{};
      x_ = at::randn({8, 32, 256}, rank_generator());
      y_ = at::randint(0, 10, {8, 32}, rank_generator(), at::TensorOptions().dtype(at::kLong));
      optimizer_ = std::make_unique<AdamW>(mlp_->parameters(), AdamWOptions{.lr = 1e-3});
      accelerator_.prepare(mlp_, *optimizer_);
    } else {
      bert_ = BertForSequenceClassification{encoder_config()};
      for (int i = 0; i < 4; ++i) {
        const auto ids = at::randint(0, 30522, {8, 128}, rank_generator(), at::TensorOptions().dtype(at::kLong));
        batches_.push_back({{"input_ids", ids},
                            {"attention_mask", at::ones_like(ids)},
                            {"labels", at::randint(0, 2, {8}, rank_generator(), at::TensorOptions().dtype(at::kLong))}});
      }
      optimizer_ = std::make_unique<AdamW>(bert_->parameters(), AdamWOptions{.lr = 1e-4});
      accelerator_.prepare(bert_, *optimizer_);
    }
  }
  void step() {
    at::Tensor loss;
    {
      const auto scope = accelerator_.autocast();
      const auto i = count_++;
      loss = mlp_ ? at::cross_entropy_loss(mlp_(x_[i % 8]), y_[i % 8]) : bert_(batches_[static_cast<std::size_t>(i % 4)]).loss;
    }
    accelerator_.backward(loss);
    optimizer_->step();
    optimizer_->zero_grad();
  }

 private:
  test::FakeContext context_;
  Accelerator accelerator_;
  BertForSequenceClassification bert_{nullptr};
  Mlp mlp_{nullptr};
  at::Tensor x_, y_;
  std::vector<Batch> batches_;
  std::unique_ptr<AdamW> optimizer_;
  std::int64_t count_ = 0;
};

double cpu_seconds() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  const auto seconds = [](const timeval& t) { return static_cast<double>(t.tv_sec) + 1e-6 * static_cast<double>(t.tv_usec); };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

/// Every rank, and every process that never talks, has a core of its own, as `ScalingConfig::pin_threads` gives it.
void pin(int rank) {
  cpu_set_t cores;
  CPU_ZERO(&cores);
  CPU_SET(static_cast<unsigned>(rank) % std::thread::hardware_concurrency(), &cores);
  (void)sched_setaffinity(0, sizeof cores, &cores);
}

/// @param meeting where the processes of kind "meeting" wait for each other after a step; else nullptr.
std::vector<double> timed_steps(Trainee& trainee, int steps, Communicator* meeting) {
  std::vector<double> times;
  for (int i = 0; i < steps; ++i) {
    const auto begin = Clock::now();
    trainee.step();
    if (meeting) meeting->barrier().wait().or_throw();
    times.push_back(std::chrono::duration<double>(Clock::now() - begin).count());
  }
  return times;
}

/// A process that trains n steps whenever it reads n, and answers "median_step_s cpu_s_per_step_and_rank peak_bytes".
int be_worker(const std::string& kind, int rank, const std::string& name) {
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  const auto timeout = std::chrono::seconds{60};
  const int num_ranks = kind == "threads" ? 2 : 1;
  std::vector<std::unique_ptr<Communicator>> seats;
  if (kind == "threads") {
    seats = make_thread_group(2, timeout);
  } else {
    seats.push_back(kind == "processes" ? SharedGroup::join(group_fd, rank) : self_communicator());
  }
  const auto meeting = kind == "meeting" ? SharedGroup::join(group_fd, rank) : nullptr;
  int steps = 0;
  std::vector<double> times;
  std::barrier meet{num_ranks + 1};
  std::vector<std::thread> threads;
  for (int r = 0; r < num_ranks; ++r) {
    threads.emplace_back([&, r] {
      pin(kind == "threads" ? r : rank);
      Trainee trainee{parse(name), *seats[static_cast<std::size_t>(r)]};
      for (;;) {
        meet.arrive_and_wait();
        if (steps == 0) return;
        auto mine = timed_steps(trainee, steps, meeting.get());
        if (r == 0) times = std::move(mine);
        meet.arrive_and_wait();
      }
    });
  }
  while (std::cin >> steps && steps > 0) {
    const auto cpu = cpu_seconds();
    meet.arrive_and_wait();
    meet.arrive_and_wait();
    rusage usage{};
    getrusage(RUSAGE_SELF, &usage);
    std::cout << median(times) << " " << (cpu_seconds() - cpu) / steps / num_ranks << " " << 1024.0 * static_cast<double>(usage.ru_maxrss) / num_ranks << std::endl;
  }
  steps = 0;
  meet.arrive_and_wait();
  for (auto& thread : threads) thread.join();
  return 0;
}

}  // namespace

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  const auto n = values.size();
  return n % 2 ? values[n / 2] : (values[n / 2 - 1] + values[n / 2]) / 2;
}

Worker::Worker(const std::string& kind, int rank, const std::string& task, int fd) {
  int in[2], out[2];
  if (pipe2(in, O_CLOEXEC) != 0 || pipe2(out, O_CLOEXEC) != 0) throw Failure{Errc::StartFailed, "bench: no pipe"};
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, in[0], 0);
  posix_spawn_file_actions_adddup2(&actions, out[1], 1);
  if (fd >= 0) posix_spawn_file_actions_adddup2(&actions, fd, group_fd);
  std::vector<std::string> words{"bench", "--worker", kind, std::to_string(rank), task};
  std::vector<char*> argv;
  for (auto& word : words) argv.push_back(word.data());
  argv.push_back(nullptr);
  const int error = posix_spawn(&pid_, "/proc/self/exe", &actions, nullptr, argv.data(), environ);
  posix_spawn_file_actions_destroy(&actions);
  close(in[0]);
  close(out[1]);
  if (error) throw Failure{Errc::StartFailed, std::string{"bench: "} + std::strerror(error)};
  to_ = fdopen(in[1], "w");
  from_ = fdopen(out[0], "r");
}

Worker::~Worker() {
  fclose(to_);
  fclose(from_);
  waitpid(pid_, nullptr, 0);
}

void Worker::start(int steps) {
  std::fprintf(to_, "%d\n", steps);
  std::fflush(to_);
}

Worker::Figures Worker::finish() {
  Figures figures;
  if (std::fscanf(from_, "%lf %lf %lf", &figures.step_s, &figures.cpu_s, &figures.peak_bytes) != 3) {
    throw Failure{Errc::RankExited, "bench: a worker ended early"};
  }
  return figures;
}

Side::Side(const std::string& kind, const std::string& task) {
  if (kind == "processes" || kind == "meeting") group = SharedGroup::create(2, std::chrono::seconds{60});
  for (int r = 0; r < (kind == "threads" ? 1 : 2); ++r) workers.push_back(std::make_unique<Worker>(kind, r, task, group ? group->fd() : -1));
}

Side::~Side() = default;

void Side::run(int steps, bool count) {
  for (auto& worker : workers) worker->start(steps);
  double step = 0, cpu = 0;
  for (auto& worker : workers) {
    const auto figures = worker->finish();
    step += figures.step_s / static_cast<double>(workers.size());
    cpu += figures.cpu_s / static_cast<double>(workers.size());
    peak_bytes = std::max(peak_bytes, figures.peak_bytes);
  }
  if (!count) return;
  step_s.push_back(step);
  cpu_s.push_back(cpu);
}

nlohmann::ordered_json overhead_figure(const std::string& name, const std::vector<double>& ours, const std::vector<double>& peer, double overhead,
                                       const std::string& peer_name) {
  std::vector<double> ratios;
  for (std::size_t i = 0; i < ours.size(); ++i) ratios.push_back(peer[i] / ours[i]);
  const auto ratio = median(ratios);
  const auto goal = 1 / (1 + overhead);
  std::printf("%-36s %10.6f s %10.6f s  %+6.2f %%\n", name.c_str(), median(ours), median(peer), 100 * (1 / ratio - 1));
  return {{"figure", name}, {"ours", median(ours)}, {"peer", median(peer)}, {"peer_name", peer_name}, {"unit", "s"},
          {"ratio", ratio}, {"goal", goal}, {"holds", ratio >= goal}, {"runs", ours.size()}};
}

int be_worker_if_asked(int argc, char** argv) {
  const std::vector<std::string> words(argv + 1, argv + argc);
  return words.size() == 4 && words[0] == "--worker" ? be_worker(words[1], std::stoi(words[2]), words[3]) : -1;
}

void run_case(const std::string& task, int steps, int warm, const std::string& kind) {
  if (kind != "threads" && kind != "processes") throw Failure{Errc::InvalidArgument, "there are ranks as threads and as processes, not as " + kind};
  Side ranks{kind, task};
  ranks.run(warm, false);
  for (int round = 0; round < 3; ++round) ranks.run(steps);
  const auto step = median(ranks.step_s);
  std::cout << nlohmann::ordered_json{{"case", task}, {"ranks", kind}, {"step_s", step}, {"steps_per_s", 1 / step}, {"cpu_s", median(ranks.cpu_s)},
                                      {"peak_bytes", ranks.peak_bytes}}.dump()
            << std::endl;
}

}  // namespace troupe::bench
