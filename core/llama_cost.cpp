#include <troupe/llama_cost.hpp>

#include <algorithm>
#include <array>
#include <utility>

namespace troupe {

namespace {

const std::array<std::pair<const char*, LlamaShape>, 5> presets{{
    {"llama-2-7b", {32, 4096, 11008, 32, 32, 128, 32000, false}},
    {"llama-2-13b", {40, 5120, 13824, 40, 40, 128, 32000, false}},
    {"llama-2-70b", {80, 8192, 28672, 64, 8, 128, 32000, false}},
    {"llama-3-8b", {32, 4096, 14336, 32, 8, 128, 128256, false}},
    {"smollm2-135m", {30, 576, 1536, 9, 3, 64, 49152, true}},
}};

std::int64_t attention_matrices(const LlamaShape& s) { return s.hidden * s.head_dim * (2 * s.heads + 2 * s.kv_heads); }
std::int64_t mlp_matrices(const LlamaShape& s) { return 3 * s.hidden * s.intermediate; }
std::int64_t embedding(const LlamaShape& s) { return s.vocab * s.hidden; }

/// Elements that a layer keeps of one token: inputs of both norms and of all matrices, q, k, v, and the three inner values of SwiGLU.
std::int64_t kept_in_layer(const LlamaShape& s) { return 4 * s.hidden + 2 * s.heads * s.head_dim + 2 * s.kv_heads * s.head_dim + 4 * s.intermediate; }

}  // namespace

std::optional<LlamaShape> llama_preset(const std::string& name) {
  for (const auto& [full, shape] : presets) {
    const std::string preset = full;
    if (name == preset || (preset.starts_with("llama-2-") && name == preset.substr(8))) return shape;
  }
  return std::nullopt;
}

std::vector<std::string> llama_preset_names() {
  std::vector<std::string> names;
  for (const auto& preset : presets) names.emplace_back(preset.first);
  return names;
}

ModelSize model_size_of(const LlamaShape& s, std::int64_t lora_r, std::int64_t persistence_threshold) {
  const auto base = attention_matrices(s) + mlp_matrices(s) + 2 * s.hidden;
  const auto adapters = lora_r * 3 * (s.hidden + s.intermediate);
  ModelSize size;
  const auto all = s.layers * base + s.hidden + (s.tied ? 1 : 2) * embedding(s);
  size.num_params = lora_r > 0 ? s.layers * adapters : all;
  size.num_frozen = lora_r > 0 ? all : 0;
  size.largest_unit = std::max(base + adapters, embedding(s));
  size.root_unit = s.hidden;
  size.num_units = static_cast<int>(s.layers) + (s.tied ? 2 : 3);
  const auto persists = [&](std::int64_t elements, std::int64_t count) { return elements <= persistence_threshold ? elements * count : 0; };
  size.num_persistent = persists(s.hidden, 2 * s.layers) + persists(lora_r * s.hidden, lora_r > 0 ? 3 * s.layers : 0) + persists(lora_r * s.intermediate, lora_r > 0 ? 3 * s.layers : 0);
  return size;
}

double flops_per_token(const LlamaShape& s, std::int64_t tokens, bool frozen_base) {
  const auto parameters = s.layers * (attention_matrices(s) + mlp_matrices(s) + 2 * s.hidden) + s.hidden + embedding(s);  // the head; a lookup is free
  const auto attention = 12.0 * static_cast<double>(s.layers * s.heads * s.head_dim * tokens);
  return (frozen_base ? 4.0 : 6.0) * static_cast<double>(parameters) + attention;
}

double executed_flops_per_token(const LlamaShape& s, const StepShape& step) {
  const auto once = flops_per_token(s, step.tokens, step.frozen_base);
  if (!step.activation_checkpointing) return once;
  const auto layers = static_cast<double>(s.layers * (attention_matrices(s) + mlp_matrices(s)));
  return once + 2 * layers + 4.0 * static_cast<double>(s.layers * s.heads * s.head_dim * step.tokens);
}

std::int64_t activation_bytes(const LlamaShape& s, const StepShape& step) {
  const auto tokens = step.rows * step.tokens * step.bytes;
  if (step.activation_checkpointing) return tokens * (s.layers * s.hidden + kept_in_layer(s) + 2 * s.hidden);
  return tokens * (s.layers * kept_in_layer(s) + 2 * s.hidden);
}

double zero3_traffic_bytes(const ModelSize& m, int ranks, int param_bytes, int grad_bytes) {
  const auto away = static_cast<double>(ranks - 1) / ranks;
  return away * (2.0 * param_bytes * static_cast<double>(m.num_params + m.num_frozen) + static_cast<double>(grad_bytes) * static_cast<double>(m.num_params));
}

}  // namespace troupe
