#pragma once

#include <troupe/accelerator.hpp>
#include <troupe/sharding_options.hpp>
#include <troupe/train_context.hpp>
#include <troupe/unit.hpp>

#include <ATen/core/Tensor.h>
#include <torch/nn/modules/embedding.h>
#include <torch/nn/modules/linear.h>
#include <torch/nn/modules/normalization.h>

#include <map>
#include <string>
#include <vector>

namespace troupe::test {

/// A block with shapes that no number of ranks divides, a frozen parameter, and one that only even blocks use.
struct OddBlockImpl : Unit {
  OddBlockImpl(std::int64_t width, bool uses_spare, double dropout = 0);
  at::Tensor forward(const at::Tensor& x);
  torch::nn::Linear up, down;
  torch::nn::LayerNorm norm;
  at::Tensor spare, frozen;
  bool uses_spare;
  double dropout;
};
TROUPE_UNIT(OddBlock);

/// Token ids [B, T] to scores [B, T, V]; the output layer is the embedding (tied).
struct OddNetImpl : Unit {
  OddNetImpl(std::int64_t vocabulary, std::int64_t width, int blocks, double dropout = 0);
  at::Tensor forward(const at::Tensor& ids_BT);
  torch::nn::Embedding embedding;
  std::vector<OddBlock> blocks;
  at::Tensor scale;  // a buffer
};
TROUPE_UNIT(OddNet);

struct ShardCase {
  ShardingOptions sharding{};
  int accumulation = 1;
  double clip = 0;  ///< 0: none
  Precision precision = Precision::No;
  int steps = 4;
  bool set_to_none = true;
  double dropout = 0;
  int blocks = 3;
  LossScale loss_scale{.initial = 1024, .growth_interval = 2};  ///< fp16
  bool gathers_result = true;
};

/// What training made: losses of this rank, gradient norms (NaN: of a step that was skipped), and on rank 0 the parameters.
struct ShardResult {
  std::vector<double> losses, norms, scales;
  std::map<std::string, at::Tensor> parameters;
};

[[nodiscard]] ShardResult train_sharded(TrainContext& context, const ShardCase& c);
/// One process that computes every rank's gradients and adds them up in rank order, in fp32. In bf16 and fp16 it computes as
/// the strategy does: with weights of that type beside fp32 masters, or (Replicate) with fp32 weights under autocast.
[[nodiscard]] ShardResult train_alone(const ShardCase& c, int ranks);
/// Throws when a parameter differs in one bit, or a norm.
void expect_equal(const ShardResult& ours, const ShardResult& reference);

/// "zero3,reshard=0,accumulation=2,clip=1,group=2,persist=50": for process ranks, which get their case as text. Throws on an unknown word.
[[nodiscard]] ShardCase case_from(const std::string& text);

}  // namespace troupe::test
