#pragma once

#include "fake_context.hpp"

#include <troupe/accelerator.hpp>
#include <troupe/unit.hpp>

#include <torch/nn/modules/batchnorm.h>
#include <torch/nn/modules/embedding.h>
#include <torch/nn/modules/linear.h>

#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <vector>

namespace troupe::test {

/// A directory that is gone at the end.
struct TempDirectory {
  TempDirectory();
  ~TempDirectory();
  std::filesystem::path path;
};

/// A linear layer with dropout from the rank's generator.
struct DropBlockImpl : Unit {
  explicit DropBlockImpl(std::int64_t width);
  at::Tensor forward(const at::Tensor& x);
  torch::nn::Linear linear;
};
TROUPE_UNIT(DropBlock);

/// Ids [B] to scores [B, 11]; tied weights, buffers that differ over ranks, sizes that no number of ranks divides.
struct DropNetImpl : Unit {
  explicit DropNetImpl(std::int64_t width = 7);
  at::Tensor forward(const at::Tensor& ids_B);
  torch::nn::Embedding embedding;
  std::vector<DropBlock> blocks;
  torch::nn::BatchNorm1d norm;
  at::Tensor head, bias;  // head is the embedding's weight
};
TROUPE_UNIT(DropNet);

/// Samples {"id", "label"} of a few classes, for DropNet.
class Ids final : public MapDataset {
 public:
  explicit Ids(int size) : size_(size) {}
  [[nodiscard]] std::size_t size() const override { return static_cast<std::size_t>(size_); }
  [[nodiscard]] TensorDict get(std::size_t index) const override;

 private:
  int size_;
};

enum class Kind { AdamW, Adam, SGD, Adagrad, Lion };

struct ResumeCase {
  std::string name = "replicate";
  ShardingOptions sharding{};
  Precision precision = Precision::No;
  bool half_parameters = false;  ///< the module's are bf16
  Kind kind = Kind::AdamW;
  int accumulation = 1;
  int workers = 0;
  CheckpointOptions checkpoint{};
  ProjectConfiguration project{};
  std::uint64_t seed = 3;  ///< of weights, and of everything else that a load must replace
  std::int64_t width = 7;
  int num_samples = 44;
  BadNumbers bad_numbers{};
};

[[nodiscard]] ResumeCase sharded(ShardingStrategy strategy, int group = 0);

/// One rank's training of the case: all that a loop has.
struct Training {
  Training(TrainContext& context, const ResumeCase& c);
  /// One batch: forward, backward, and at a window's end an update. Returns the loss.
  double step(const Batch& batch);
  /// Steps of the next `updates` updates, over epochs.
  void train(int updates);

  ResumeCase c;
  Accelerator accelerator;
  DropNet net{nullptr};
  std::vector<at::Tensor> parameters;  // each once
  std::unique_ptr<Optimizer> optimizer;
  std::unique_ptr<LRScheduler> scheduler;
  DataLoader loader;
  int num_updates = 0;
};

/// Every tensor of a checkpoint, "stem/name", and its bytes; verified.
[[nodiscard]] std::map<std::string, std::string> contents_of(const std::filesystem::path& checkpoint);

}  // namespace troupe::test
