// One run on several nodes: three terminals on a laptop, or the same program under `troupe launch` on a laptop, Slurm or Kubernetes.
//
//   1   cluster --listen 127.0.0.1:7077 --nodes 2
//   2   troupe node --join 127.0.0.1:7077 --name left --cpus 2
//   3   troupe node --join 127.0.0.1:7077 --name right --cpus 2
// or all three at once:  troupe launch --nodes 2 cluster
//
// Fits a line with four ranks, two on each node. Prints where ranks are, the loss, and what it found; end a node with Ctrl-C, or with kill -9, to see
// its ranks go elsewhere. `troupe status` and `troupe logs --follow` look at it meanwhile. Checks its own result.
#include <troupe/cluster.hpp>
#include <troupe/troupe.hpp>

#include <ATen/core/grad_mode.h>
#include <ATen/ops/mse_loss.h>
#include <ATen/ops/scalar_tensor.h>
#include <CLI/CLI.hpp>
#include <torch/nn/modules/linear.h>

#include <chrono>
#include <cmath>
#include <cstdio>
#include <map>
#include <string>
#include <thread>

namespace {

using namespace std::chrono_literals;

constexpr double slope = 3, offset = -1;
constexpr int num_points = 128;

/// Points of the line y = 3x - 1.
class Line final : public troupe::MapDataset {
 public:
  [[nodiscard]] std::size_t size() const override { return num_points; }
  [[nodiscard]] troupe::TensorDict get(std::size_t index) const override {
    const double x = 2.0 * static_cast<double>(index) / num_points - 1;
    return {{"x", at::scalar_tensor(x).unsqueeze(0)}, {"y", at::scalar_tensor(slope * x + offset).unsqueeze(0)}};
  }
};

/// Runs on every rank, wherever its node is.
void fit_line(troupe::TrainContext& context, const troupe::Config& config) {
  troupe::Accelerator accelerator{context};
  troupe::set_seed(1);
  torch::nn::Linear model{1, 1};
  troupe::SGD optimizer{model->parameters(), {.lr = 0.2}};
  troupe::DataLoader loader{std::make_shared<Line>(), {.batch_size = 8, .shuffle = true}};
  accelerator.prepare(model, optimizer, loader);
  if (const auto checkpoint = context.get_checkpoint()) accelerator.load_state(checkpoint->path());
  const int epochs = config.get<int>("epochs");
  const std::chrono::milliseconds pause{config.get<int>("epoch_ms")};
  for (int epoch = 1; epoch <= epochs; ++epoch) {
    double loss = 0;
    for (const auto& batch : loader) {
      const auto error = at::mse_loss(model(batch["x"]), batch["y"]);
      accelerator.backward(error);
      optimizer.step();
      optimizer.zero_grad();
      loss = error.item<double>();
    }
    std::this_thread::sleep_for(pause);
    const at::NoGradGuard no_grad;
    context.report({{"epoch", epoch}, {"loss", loss}, {"slope", model->weight.item<double>()}, {"offset", model->bias.item<double>()}}, accelerator.checkpoint());
    if (context.should_stop()) return;
  }
}

/// Where ranks are: "left: 2, right: 2".
std::string places_of(const troupe::ClusterStatus& status) {
  std::map<std::string, int> count;
  for (const auto& node : status.nodes) count[node.name] += static_cast<int>(node.ranks.size());
  std::string text;
  for (const auto& [name, ranks] : count) text += (text.empty() ? "" : ", ") + name + ": " + std::to_string(ranks);
  return text;
}

struct Options {
  std::string listen = "127.0.0.1:7077", certs, storage = "results";
  int nodes = 2, ranks = 4, epochs = 20, epoch_ms = 0;
};

int run(const troupe::Session& session, const Options& o) {
  auto cluster = troupe::cluster_from_environment();  // under `troupe launch`
  if (!cluster) {
    cluster = troupe::Cluster::open({o.listen, {o.certs, "head", false}});
    std::printf("waits for %d nodes; in other terminals: troupe node --join %s --name NAME --cpus 2\n", o.nodes, cluster->address().c_str());
    if (!cluster->wait_for_nodes(o.nodes, 10min)) throw troupe::Failure{troupe::Errc::DeadlinePassed, "they did not come within ten minutes"};
  }
  troupe::TrainerOptions options;
  options.cluster = cluster;
  options.scaling.num_workers = o.ranks;
  options.scaling.placement = troupe::Placement::Nodes;
  options.scaling.placement_strategy = troupe::PlacementStrategy::Spread;
  options.run.name = "cluster";
  options.run.storage_path = o.storage;
  options.run.resume = troupe::Resume::Never;
  options.run.failure.max_failures = 3;
  options.on_report = [&](const troupe::ReportRecord& report) {
    if (report.rank != 0) return;
    const auto value = [&](const char* name) { return report.metrics.number(name).value_or(NAN); };
    std::printf("epoch %2.0f  loss %.6f  ranks on %s\n", value("epoch"), value("loss"), places_of(cluster->status()).c_str());
  };
  const auto result = troupe::TorchTrainer{session, "fit_line", {{"epochs", o.epochs}, {"epoch_ms", o.epoch_ms}}, options}.fit();
  if (!result.ok()) return result.exit_code();
  const double found_slope = result.metrics.number("slope").value_or(NAN), found_offset = result.metrics.number("offset").value_or(NAN);
  std::printf("found y = %.3f x %+.3f\n", found_slope, found_offset);
  const bool is_right = std::abs(found_slope - slope) < 0.05 && std::abs(found_offset - offset) < 0.05;
  if (!is_right) std::fprintf(stderr, "cluster: should be y = 3 x - 1\n");
  return is_right ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) {
  const troupe::Session session{argc, argv, {{"fit_line", fit_line}}};  // ranks return here
  Options o;
  CLI::App app{"Fits a line with ranks on several nodes"};
  app.add_option("--listen", o.listen, "where nodes join")->capture_default_str();
  app.add_option("--certs", o.certs, "directory with the certificate `head`, for nodes on other hosts");
  app.add_option("--storage", o.storage, "a directory that all nodes see")->capture_default_str();
  app.add_option("--nodes", o.nodes, "how many to wait for")->capture_default_str();
  app.add_option("--ranks", o.ranks)->capture_default_str();
  app.add_option("--epochs", o.epochs)->capture_default_str();
  app.add_option("--epoch_ms", o.epoch_ms, "pause after each, to have time to end a node")->capture_default_str();
  CLI11_PARSE(app, argc, argv);
  try {
    return run(session, o);
  } catch (const troupe::Failure& failure) {
    std::fprintf(stderr, "cluster: %s\n", failure.what());
    return 1;
  }
}
