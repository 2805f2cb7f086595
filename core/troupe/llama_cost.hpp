#pragma once

#include <troupe/memory_estimate.hpp>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace troupe {

/// The sizes that decide what a Llama costs, by the names of its config.json.
struct LlamaShape {
  std::int64_t layers = 0, hidden = 0, intermediate = 0, heads = 0, kv_heads = 0, head_dim = 0, vocab = 0;
  bool tied = false;  ///< embedding and head are one
};

/// "llama-2-7b", "llama-2-13b", "llama-2-70b" (also "7b", …), "llama-3-8b", "smollm2-135m"; nothing for another name.
[[nodiscard]] std::optional<LlamaShape> llama_preset(const std::string& name);
[[nodiscard]] std::vector<std::string> llama_preset_names();

/// Parameters and units as the sharding engine cuts them: each layer, the embedding, the head, and the last norm as the root.
/// @param lora_r rank of adapters on gate, up and down projections, which alone are trained then; 0: the whole model is.
/// @param persistence_threshold as in ShardingOptions.
[[nodiscard]] ModelSize model_size_of(const LlamaShape& shape, std::int64_t lora_r = 0, std::int64_t persistence_threshold = 0);

/// What one rank computes and holds in a step.
struct StepShape {
  std::int64_t rows = 1;    ///< of one batch, a rank
  std::int64_t tokens = 512;  ///< of a row
  bool activation_checkpointing = true;
  bool frozen_base = false;  ///< LoRA: no gradients of the base's matrices
  int bytes = 2;             ///< of an activation
};

/// Floating-point operations of forward and backward of one token, without what checkpointing runs again: 6 a parameter of a
/// matrix (4 with a frozen base) and 12 · layers · heads · head size · tokens of attention (PaLM, arXiv 2204.02311, appendix B).
[[nodiscard]] double flops_per_token(const LlamaShape& shape, std::int64_t tokens, bool frozen_base = false);
/// The same with the forward that checkpointing runs again: what the device does.
[[nodiscard]] double executed_flops_per_token(const LlamaShape& shape, const StepShape& step);
/// Bytes that forward keeps for backward: of each layer its input, and one layer's inside while it runs again; or all. Attention's
/// scores are never kept; the logits are computed some rows at a time.
[[nodiscard]] std::int64_t activation_bytes(const LlamaShape& shape, const StepShape& step);
/// Bytes a rank sends in a step of ZeRO-3: parameters gathered for forward and backward, gradients of trained ones scattered.
[[nodiscard]] double zero3_traffic_bytes(const ModelSize& model, int ranks, int param_bytes, int grad_bytes);

}  // namespace troupe
