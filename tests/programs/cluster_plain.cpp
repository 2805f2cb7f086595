// As cluster_train, without LibTorch: ranks descend a quadratic whose gradient they sum over the group. Starts in milliseconds; for tests/cluster.
#include "cluster_run.hpp"

#include <cstdio>
#include <fstream>
#include <thread>
#include <vector>

namespace {

using namespace troupe;

constexpr std::size_t num_weights = 256;
constexpr int num_points = 480;

/// Rank r's share of the gradient of the mean of (w_i - target_i(point))² over a batch of `batch` points each; the batch's loss.
double add_gradient(const std::vector<float>& weights, int update, int rank, int ranks, int batch, std::vector<float>& gradient) {
  double loss = 0;
  for (int k = 0; k < batch; ++k) {
    const int point = ((update - 1) * ranks * batch + rank * batch + k) * 7 % num_points;
    for (std::size_t i = 0; i < num_weights; ++i) {
      const float error = weights[i] - static_cast<float>((point * (i + 1)) % 11) / 11;
      gradient[i] += 2 * error / static_cast<float>(ranks * batch);
      loss += error * error / (num_weights * static_cast<double>(batch));
    }
  }
  return loss;
}

void train(TrainContext& context, const Config& config) {
  const int updates = config.get<int>("updates"), every = config.get<int>("checkpoint_every"), batch = config.get<int>("batch");
  std::vector<float> weights(num_weights, 2);
  std::int64_t update = 0;
  if (const auto checkpoint = context.get_checkpoint()) {
    std::ifstream file{checkpoint->path() / "state", std::ios::binary};
    file.read(reinterpret_cast<char*>(&update), sizeof update);
    file.read(reinterpret_cast<char*>(weights.data()), num_weights * sizeof(float));
    if (!file) throw Failure{Errc::FileCorrupt, checkpoint->path().string() + ": has no whole state"};
  }
  std::printf("begins after update %lld\n", static_cast<long long>(update));
  std::fflush(stdout);
  while (update < updates) {
    std::vector<float> gradient(num_weights, 0);
    const double loss = add_gradient(weights, static_cast<int>(++update), context.world_rank(), context.world_size(), batch, gradient);
    context.communicator().all_reduce(Buffer{gradient.data(), num_weights * sizeof(float), DType::F32}, ReduceOp::Sum).wait().or_throw();
    for (std::size_t i = 0; i < num_weights; ++i) weights[i] -= 0.02F * gradient[i];
    std::this_thread::sleep_for(std::chrono::milliseconds{config.get<int>("step_ms")});
    context.step_completed();
    context.progress({.step = update, .num_steps = updates, .loss = loss});
    std::optional<Checkpoint> checkpoint;
    if (every > 0 && update % every == 0 && context.world_rank() == 0) {
      const auto directory = context.checkpoint_dir();
      std::ofstream file{directory / "state", std::ios::binary};
      file.write(reinterpret_cast<const char*>(&update), sizeof update);
      file.write(reinterpret_cast<const char*>(weights.data()), num_weights * sizeof(float));
      file.close();
      if (!file) throw Failure{Errc::StorageUnavailable, "cannot write " + directory.string()};
      checkpoint = Checkpoint{directory};
    }
    context.report({{"update", update}, {"loss", loss}}, checkpoint);
    if (context.should_stop()) return;
  }
  double sum = 0;
  for (std::size_t i = 0; i < num_weights; ++i) sum += weights[i] * static_cast<double>(i + 1);
  if (context.world_rank() == 0) context.report({{"digest", std::to_string(sum)}});
}

}  // namespace

int main(int argc, char** argv) { return troupe::test::cluster_main(argc, argv, "cluster_plain", train); }
