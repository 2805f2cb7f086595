#pragma once

#include "ddp.hpp"

#include <troupe/accelerator.hpp>

#include <torch/nn/module.h>

#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <vector>

namespace troupe {

struct Accelerator::Impl {
  struct Model {
    std::shared_ptr<torch::nn::Module> module;
    std::unique_ptr<detail::DdpEngine> engine;  // none in a world of one, or when nothing is trained
  };

  Impl(TrainContext& c, AcceleratorOptions o) : context(c), communicator(c.communicator()), options(std::move(o)) {}

  TrainContext& context;
  Communicator& communicator;
  AcceleratorOptions options;
  std::vector<Model> models;
  std::vector<Optimizer*> optimizers;
  std::vector<LRScheduler*> schedulers;
  struct Loader {
    DataLoader* loader;
    std::uint64_t shared_seed;  // of a shuffle without a seed of its own
  };
  std::vector<Loader> loaders;

  std::shared_ptr<StepGate> gate = std::make_shared<StepGate>();  // of the prepared optimizers
  int window_steps = 0;                                           // accumulate() calls since the last update
  double divisor = 1;                                             // of losses
  int no_sync_depth = 0;
  std::vector<std::shared_ptr<torch::nn::Module>> added;  // by the prepare() under way

  /// The state of a loader whose last batch is being processed, the innermost one's; nullptr when there is none.
  [[nodiscard]] const LoaderState* ending_loader() const;
  /// Gives the loader this rank's share.
  void shard(const Loader& loader);
  /// Epoch, position and seed of every loader.
  [[nodiscard]] nlohmann::ordered_json loader_state() const;
  void load_loader_state(const nlohmann::ordered_json& state);
  /// Multiplies the gradients that prepared models hold.
  void scale_gradients(double factor);
  /// Throws Failure{CollectiveMismatch} unless `tensor` has one dtype and shape on every rank.
  void check_same_shape(const char* call, const at::Tensor& tensor);
};

}  // namespace troupe
