// DDP's cost: training steps of two ranks beside two independent processes that never talk, alternating in one run.
//
//   ddp_bench [--json FILE]                     all figures (about 80 s), a table and FILE
//   ddp_bench --case encoder_fp32|encoder_bf16|mlp   only ours; the last line is one JSON object
//
// encoder: BERT, hidden 512, 4 layers, 8 heads, 2048, 30522 words, no dropout; batch 8 x 128 tokens a rank, AdamW.
// mlp: 256-256-256-256-256-10, batch 32 a rank, AdamW.
#include "fake_context.hpp"

#include <troupe/accelerator.hpp>
#include <troupe/bert.hpp>
#include <troupe/local_groups.hpp>

#include <ATen/ops/cross_entropy_loss.h>
#include <ATen/ops/ones_like.h>
#include <ATen/ops/randint.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/relu.h>
#include <torch/nn/modules/linear.h>

#include <fcntl.h>
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

namespace {

using namespace troupe;
using Clock = std::chrono::steady_clock;
constexpr int group_fd = 40;

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  const auto n = values.size();
  return n % 2 ? values[n / 2] : (values[n / 2 - 1] + values[n / 2]) / 2;
}

struct MlpImpl : torch::nn::Module {
  MlpImpl() {
    for (int i = 0; i < 5; ++i) layers.push_back(register_module("l" + std::to_string(i), torch::nn::Linear(256, i < 4 ? 256 : 10)));
  }
  at::Tensor forward(at::Tensor x) {
    for (int i = 0; i < 4; ++i) x = at::relu(layers[static_cast<std::size_t>(i)](x));
    return layers[4](x);
  }
  std::vector<torch::nn::Linear> layers;
};

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
  Trainee(const std::string& name, Communicator& communicator)
      : context_(communicator), accelerator_(context_, {.mixed_precision = name == "encoder_bf16" ? Precision::BF16 : Precision::No}) {
    set_seed(static_cast<std::uint64_t>(communicator.rank()));
    if (name == "mlp") {
      mlp_ = std::make_shared<MlpImpl>();
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
      loss = mlp_ ? at::cross_entropy_loss(mlp_->forward(x_[i % 8]), y_[i % 8]) : bert_(batches_[static_cast<std::size_t>(i % 4)]).loss;
    }
    accelerator_.backward(loss);
    optimizer_->step();
    optimizer_->zero_grad();
  }

 private:
  test::FakeContext context_;
  Accelerator accelerator_;
  BertForSequenceClassification bert_{nullptr};
  std::shared_ptr<MlpImpl> mlp_;
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

std::vector<double> timed_steps(Trainee& trainee, int steps) {
  std::vector<double> times;
  for (int i = 0; i < steps; ++i) {
    const auto begin = Clock::now();
    trainee.step();
    times.push_back(std::chrono::duration<double>(Clock::now() - begin).count());
  }
  return times;
}

/// A process that trains n steps whenever it reads n, and answers "median_step_s cpu_s_per_step_and_rank".
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
  int steps = 0;
  std::vector<double> times;
  std::barrier meet{num_ranks + 1};
  std::vector<std::thread> threads;
  for (int r = 0; r < num_ranks; ++r) {
    threads.emplace_back([&, r] {
      Trainee trainee{name, *seats[static_cast<std::size_t>(r)]};
      for (;;) {
        meet.arrive_and_wait();
        if (steps == 0) return;
        auto mine = timed_steps(trainee, steps);
        if (r == 0) times = std::move(mine);
        meet.arrive_and_wait();
      }
    });
  }
  while (std::cin >> steps && steps > 0) {
    const auto cpu = cpu_seconds();
    meet.arrive_and_wait();
    meet.arrive_and_wait();
    std::cout << median(times) << " " << (cpu_seconds() - cpu) / steps / num_ranks << std::endl;
  }
  steps = 0;
  meet.arrive_and_wait();
  for (auto& thread : threads) thread.join();
  return 0;
}

/// A worker process and the two pipes to it.
class Worker {
 public:
  Worker(const std::string& kind, int rank, const std::string& name, int fd) {
    int in[2], out[2];
    if (pipe2(in, O_CLOEXEC) != 0 || pipe2(out, O_CLOEXEC) != 0) throw Failure{Errc::StartFailed, "ddp_bench: no pipe"};
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, in[0], 0);
    posix_spawn_file_actions_adddup2(&actions, out[1], 1);
    if (fd >= 0) posix_spawn_file_actions_adddup2(&actions, fd, group_fd);
    std::vector<std::string> words{"ddp_bench", "--worker", kind, std::to_string(rank), name};
    std::vector<char*> argv;
    for (auto& word : words) argv.push_back(word.data());
    argv.push_back(nullptr);
    const int error = posix_spawn(&pid_, "/proc/self/exe", &actions, nullptr, argv.data(), environ);
    posix_spawn_file_actions_destroy(&actions);
    close(in[0]);
    close(out[1]);
    if (error) throw Failure{Errc::StartFailed, std::string{"ddp_bench: "} + std::strerror(error)};
    to_ = fdopen(in[1], "w");
    from_ = fdopen(out[0], "r");
  }
  ~Worker() {
    fclose(to_);
    fclose(from_);
    waitpid(pid_, nullptr, 0);
  }
  Worker(const Worker&) = delete;
  void start(int steps) {
    std::fprintf(to_, "%d\n", steps);
    std::fflush(to_);
  }
  std::pair<double, double> finish() {
    double step = 0, cpu = 0;
    if (std::fscanf(from_, "%lf %lf", &step, &cpu) != 2) throw Failure{Errc::RankExited, "ddp_bench: a worker ended early"};
    return {step, cpu};
  }

 private:
  pid_t pid_ = 0;
  FILE* to_ = nullptr;
  FILE* from_ = nullptr;
};

/// Workers of one kind; `run` trains on all at once.
struct Side {
  std::unique_ptr<SharedGroup> group;
  std::vector<std::unique_ptr<Worker>> workers;
  std::vector<double> step_s, cpu_s;

  Side(const std::string& kind, const std::string& name) {
    if (kind == "processes") group = SharedGroup::create(2, std::chrono::seconds{60});
    for (int r = 0; r < (kind == "threads" ? 1 : 2); ++r) {
      workers.push_back(std::make_unique<Worker>(kind, r, name, group ? group->fd() : -1));
    }
  }
  void run(int steps, bool count = true) {
    for (auto& worker : workers) worker->start(steps);
    double step = 0, cpu = 0;
    for (auto& worker : workers) {
      const auto [s, c] = worker->finish();
      step += s / static_cast<double>(workers.size());
      cpu += c / static_cast<double>(workers.size());
    }
    if (!count) return;
    step_s.push_back(step);
    cpu_s.push_back(cpu);
  }
};

struct Case {
  std::string name;
  int rounds, steps, warm;
  double overhead;  // of wall and processor time that may be added
};
const std::vector<Case> cases{{"encoder_fp32", 5, 3, 2, 0.02}, {"encoder_bf16", 5, 6, 3, 0.04}, {"mlp", 5, 400, 100, 0.37}};

nlohmann::ordered_json figure(const std::string& name, const std::vector<double>& ours, const std::vector<double>& peer, double overhead) {
  std::vector<double> ratios;
  for (std::size_t i = 0; i < ours.size(); ++i) ratios.push_back(peer[i] / ours[i]);
  const auto ratio = median(ratios);
  const auto goal = 1 / (1 + overhead);
  std::printf("%-36s %10.6f s %10.6f s  %+6.2f %%\n", name.c_str(), median(ours), median(peer), 100 * (1 / ratio - 1));
  return {{"figure", name}, {"ours", median(ours)}, {"peer", median(peer)}, {"peer_name", "two independent processes"}, {"unit", "s"},
          {"ratio", ratio}, {"goal", goal}, {"holds", ratio >= goal}, {"runs", ours.size()}};
}

int run_all(const std::string& json_file) {
  auto figures = nlohmann::ordered_json::array();
  std::printf("%-36s %12s %12s\n", "per step and rank", "DDP, 2 ranks", "independent");
  for (const auto& c : cases) {
    Side threads{"threads", c.name}, processes{"processes", c.name}, alone{"independent", c.name};
    for (auto* side : {&threads, &processes, &alone}) side->run(c.warm, false);
    for (int round = 0; round < c.rounds; ++round) {
      for (auto* side : {&threads, &alone, &processes}) side->run(c.steps);
    }
    for (const auto& [suffix, ours] : {std::pair{"", &threads}, std::pair{"_processes", &processes}}) {
      figures.push_back(figure("ddp_" + c.name + suffix + "_overhead", ours->step_s, alone.step_s, c.overhead));
      figures.push_back(figure("ddp_" + c.name + suffix + "_cpu_overhead", ours->cpu_s, alone.cpu_s, c.overhead));
    }
  }
  if (!json_file.empty()) std::ofstream{json_file} << figures.dump(1) << "\n";
  return 0;
}

int run_case(const std::string& name) {
  const auto found = std::find_if(cases.begin(), cases.end(), [&](const auto& c) { return c.name == name; });
  if (found == cases.end()) throw Failure{Errc::InvalidArgument, "--case " + name + ": not encoder_fp32, encoder_bf16 or mlp"};
  Side threads{"threads", name};
  threads.run(found->warm, false);
  for (int round = 0; round < 3; ++round) threads.run(found->steps);
  const auto step = median(threads.step_s);
  std::cout << nlohmann::ordered_json{{"case", name}, {"step_s", step}, {"steps_per_s", 1 / step}, {"cpu_s", median(threads.cpu_s)}}.dump() << std::endl;
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    const std::vector<std::string> words(argv + 1, argv + argc);
    if (words.size() == 4 && words[0] == "--worker") return be_worker(words[1], std::stoi(words[2]), words[3]);
    if (words.size() == 2 && words[0] == "--case") return run_case(words[1]);
    if (words.empty()) return run_all("");
    if (words.size() == 2 && words[0] == "--json") return run_all(words[1]);
    std::cerr << "usage: ddp_bench [--json FILE | --case encoder_fp32|encoder_bf16|mlp]\n";
    return 2;
  } catch (const std::exception& error) {
    std::cerr << "ddp_bench: " << error.what() << "\n";
    return 1;
  }
}
