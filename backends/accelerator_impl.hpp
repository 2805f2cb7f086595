#pragma once

#include "ddp.hpp"
#include "shard_engine.hpp"

#include <troupe/loss_scaler.hpp>

#include <troupe/accelerator.hpp>

#include <torch/nn/module.h>

#include <filesystem>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <vector>

namespace troupe {

struct Accelerator::Impl {
  struct Model {
    std::shared_ptr<torch::nn::Module> module;
    std::unique_ptr<detail::DdpEngine> engine;  // none in a world of one, when nothing is trained, or
    std::unique_ptr<detail::ShardEngine> shards;  // when sharded
  };

  Impl(TrainContext& c, AcceleratorOptions o) : context(c), communicator(c.communicator()), options(std::move(o)), scaler(options.mixed_precision == Precision::FP16 ? options.loss_scale : LossScale{.dynamic = false, .initial = 1}) {}

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
  LossScaler scaler;  // 1 and static without fp16
  std::vector<std::shared_ptr<torch::nn::Module>> added;  // by the prepare() under way

  /// The state of a loader whose last batch is being processed, the innermost one's; nullptr when there is none.
  [[nodiscard]] const LoaderState* ending_loader() const;
  void load_model(const std::filesystem::path& file, const Model& model);
  /// An optimizer's state with whole tensors, on rank 0. Collective.
  [[nodiscard]] detail::NamedTensors whole_state(const Optimizer& optimizer);
  /// This rank's part of such a state.
  [[nodiscard]] detail::NamedTensors local_state(const Optimizer& optimizer, detail::NamedTensors state) const;
  /// Gives the loader this rank's share.
  void shard(const Loader& loader);
  /// Epoch, position and seed of every loader.
  [[nodiscard]] nlohmann::ordered_json loader_state() const;
  void load_loader_state(const nlohmann::ordered_json& state);
  /// Strategy and element types for a prepared model.
  [[nodiscard]] ShardingOptions sharding() const;
  void begin_backward();
  void finish_backward();
  /// Agrees on overflow, and updates the loss scale.
  void end_window();
  /// Lets a prepared optimizer update this rank's pieces of sharded parameters.
  void repoint(Optimizer& optimizer);
  /// The engine that shards a parameter; nullptr: none does.
  [[nodiscard]] detail::ShardEngine* shards_of(const at::Tensor& parameter) const;
  [[nodiscard]] detail::ShardEngine* shards_of(const torch::nn::Module& module) const;
  /// Gradients of `parameters` that this rank has: of pieces where they are sharded.
  [[nodiscard]] std::vector<at::Tensor> gradients_of(const std::vector<at::Tensor>& parameters) const;
  /// All that prepared models hold on this rank.
  [[nodiscard]] std::vector<at::Tensor> all_gradients() const;
  /// Multiplies the gradients that prepared models hold.
  void scale_gradients(double factor);
  /// Throws Failure{CollectiveMismatch} unless `tensor` has one dtype and shape on every rank.
  void check_same_shape(const char* call, const at::Tensor& tensor);
};

}  // namespace troupe
