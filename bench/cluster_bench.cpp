// Runs on a cluster of one host: nodes are processes of this program, ranks theirs, over TLS on loopback.
//
//   cluster_bench [--json FILE]     about 40 s; a table on stderr
#include "control_figures.hpp"

#include <troupe/cluster.hpp>
#include <troupe/node.hpp>
#include <troupe/torch_trainer.hpp>

#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <thread>

namespace {

using namespace troupe;
using namespace troupe::bench;
using Json = nlohmann::ordered_json;

constexpr int runs = 5;

/// Reports when each report was made, every 10 ms.
void report(TrainContext& context, const Config& config) {
  for (int i = 0; i < config.get<int>("reports"); ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds{10});
    context.report({{"at_s", now_s()}});
  }
}

/// Steps of 10 ms on all ranks, each reported, until 3 s after the start of an attempt that follows another.
void step(TrainContext& context, const Config&) {
  const auto began = now_s();
  while (now_s() - began < (context.attempt() == 1 ? 60 : 0.2)) {
    std::this_thread::sleep_for(std::chrono::milliseconds{10});
    float value = 1;
    context.communicator().all_reduce(Buffer{&value, sizeof value, DType::F32}, ReduceOp::Sum).wait().or_throw();
    if (context.world_rank() == 0) context.report({{"at_s", now_s()}});
  }
}

class Bench {
 public:
  explicit Bench(const Session& session) : session_(session) {
    auto pattern = (std::filesystem::temp_directory_path() / "troupe-cluster-bench-XXXXXX").string();
    if (::mkdtemp(pattern.data()) == nullptr) throw Failure{Errc::StorageUnavailable, pattern + " cannot be made"};
    path_ = pattern;
    make_cluster_ca(path_ / "ca", "bench", std::chrono::hours{240});
    for (const auto* name : {"head", "node"}) {
      issue_certificate(path_ / "ca", std::string(name) == "head" ? ClusterRole::Head : ClusterRole::Node, name, std::chrono::hours{240}, path_ / "ca");
    }
    cluster_ = Cluster::open({"127.0.0.1:0", {path_ / "ca", "head", false}});
  }
  ~Bench() {
    cluster_.reset();
    for (const auto pid : agents_) end(pid);
    std::filesystem::remove_all(path_);
  }
  Bench(const Bench&) = delete;
  Bench& operator=(const Bench&) = delete;

  pid_t start_agent(const std::string& name, int cpus) {
    const auto number = std::to_string(cpus), directory = (path_ / "ca").string();
    const auto address = cluster_->address();
    const pid_t pid = fork();
    if (pid == 0) {
      execl("/proc/self/exe", "cluster_bench", "--agent", address.c_str(), name.c_str(), number.c_str(), directory.c_str(), nullptr);
      _exit(127);
    }
    agents_.push_back(pid);
    return pid;
  }
  static void end(pid_t pid) {
    kill(pid, SIGKILL);
    waitpid(pid, nullptr, 0);
  }
  void wait_for(int nodes) const {
    if (!cluster_->wait_for_nodes(nodes, std::chrono::seconds{20})) throw Failure{Errc::DeadlinePassed, "the nodes did not join within 20 s"};
  }

  void run(const std::string& function, int ranks, int max_failures, const std::function<void(const ReportRecord&)>& on_report) {
    TrainerOptions options;
    options.scaling.num_workers = ranks;
    options.scaling.placement = Placement::Nodes;
    options.run.name = "run_" + std::to_string(++num_runs_);
    options.run.storage_path = path_.string();
    options.run.progress = false;
    options.run.failure.max_failures = max_failures;
    options.cluster = cluster_;
    options.on_report = on_report;
    const auto result = TorchTrainer{session_, function, {{"reports", function == "report" && ranks == 1 ? 200 : 1}}, options}.fit();
    if (result.error) throw Failure{result.error->code, result.error->message};
  }

  /// From fit() until all of 16 ranks have done 10 ms of work.
  double start_s() {
    const auto began = now_s();
    double last = 0;
    run("report", 16, 0, [&](const ReportRecord& record) { last = std::max(last, *record.metrics.number("at_s")); });
    return last - began - 0.01;
  }
  double report_ms() {
    std::vector<double> delays;
    run("report", 1, 0, [&](const ReportRecord& record) { delays.push_back(1e3 * (now_s() - *record.metrics.number("at_s"))); });
    return median(delays);
  }
  /// From the kill of a node that has ranks to the first step of the next attempt.
  double loss_s(pid_t victim) {
    int reports = 0;
    double killed = 0, resumed = 0;
    run("step", 4, 1, [&](const ReportRecord& record) {
      if (record.attempt == 1 && ++reports == 20) end(victim), killed = now_s();
      if (record.attempt == 2 && resumed == 0) resumed = *record.metrics.number("at_s");
    });
    return resumed - killed;
  }

 private:
  const Session& session_;
  std::filesystem::path path_;
  std::shared_ptr<Cluster> cluster_;
  std::vector<pid_t> agents_;
  int num_runs_ = 0;
};

int agent(char** argv) {
  NodeOptions options;
  options.join = argv[2];
  options.name = argv[3];
  options.resources.cpus = std::atof(argv[4]);
  options.security = {argv[5], "node", false};
  return NodeAgent::start(options)->wait().ok() ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) {
  const Session session{argc, argv, {{"report", report}, {"step", step}}};
  if (argc == 6 && std::string(argv[1]) == "--agent") return agent(argv);
  std::vector<double> starts, reports, losses;
  {
    Bench bench{session};
    for (const auto* name : {"node-a", "node-b", "node-c", "node-d"}) bench.start_agent(name, 4);
    bench.wait_for(4);
    for (int run = 0; run < runs; ++run) starts.push_back(bench.start_s());
    for (int run = 0; run < runs; ++run) reports.push_back(bench.report_ms());
  }
  for (int run = 0; run < runs; ++run) {
    Bench bench{session};
    bench.start_agent("node-a", 2);
    const auto victim = bench.start_agent("node-b", 2);
    bench.wait_for(2);
    bench.start_agent("node-c", 2);
    bench.wait_for(3);
    losses.push_back(bench.loss_s(victim));
  }
  Json figures = Json::array();
  figures.push_back(figure("cluster_start_16_ranks", median(starts), {"s", 3, "its limit"}, runs));
  figures.push_back(figure("cluster_report", median(reports), {"ms", 2, "its limit"}, runs));
  figures.push_back(figure("cluster_node_loss", median(losses), {"s", 5, "its limit"}, runs));
  if (argc > 2 && std::string(argv[1]) == "--json") std::ofstream{argv[2]} << figures.dump(1) << "\n";
  return 0;
}
