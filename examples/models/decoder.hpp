#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <span>
#include <troupe/generate.hpp>
#include <troupe/llama.hpp>
#include <vector>

#include "decoder_kernels.hpp"
#include "llama_layer.hpp"

namespace troupe {

/// One token of each of a few rows through a Llama on a CPU, past the tensor library, whose operations cost more than their work here: every
/// weight is read once, in the type it has, and sums are in fp32. Borrows the model's parameters, which must not move while it lives.
///
/// Threads: one caller; work is shared among LibTorch's.
class Decoder {
 public:
  /// fp32 or bf16 on a CPU, all parameters in memory, not too many rows.
  [[nodiscard]] static bool fits(LlamaForCausalLMImpl& model, std::int64_t batch);
  /// @param cache  that the model has filled with the prompts; paddings only on the left.
  Decoder(LlamaForCausalLMImpl& model, KvCache& cache);

  /// Appends `tokens`, one a row; the next one's logits [batch, vocabulary], valid until the next call.
  [[nodiscard]] std::span<float> step(std::span<const std::int64_t> tokens);

 private:
  /// A projection with its bias and adapter.
  struct Projection {
    detail::MatrixView weight, a, b;
    std::vector<float> bias;
    float scaling = 0;
  };
  struct Layer {
    Projection q, k, v, o, gate, up, down;
    std::vector<float> input_norm, attention_norm;
  };

  [[nodiscard]] static Projection projection(const LinearImpl& linear);
  /// outputs = x through each projection, side by side; one region of threads.
  void apply(std::span<const Projection* const> projections, std::span<float* const> outputs, const float* x);
  void normalise(const std::vector<float>& weight, const float* x, float* y);
  template <class T>
  void append_and_attend(std::size_t layer);

  LlamaForCausalLMImpl& model_;
  KvCache& cache_;
  std::int64_t batch_, hidden_, heads_, kv_heads_, head_size_, inner_;
  float eps_;
  std::vector<std::int64_t> padding_;  // of each row, at its left
  std::vector<Layer> layers_;
  std::vector<float> norm_;
  detail::MatrixView words_, head_;
  detail::RopeTable rope_;
  std::vector<float> x_, y_, q_, k_, v_, attended_, gate_, up_, low_, scores_, scales_, logits_;
};

}  // namespace troupe
