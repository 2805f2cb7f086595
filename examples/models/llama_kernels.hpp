#pragma once

#include <cstdint>

#include "vector_loops.hpp"

// Loops of the Llama's operations over rows of contiguous elements of type T, float or Bf16; sums in fp32.
//
// rms_norm_rows             y = x · r · weight, r = 1 / √(mean x² + eps), which goes to `scales`, one a row
// rms_norm_rows_backward    its dx
// rms_norm_weight_backward  d_weight[begin, end) += Σ over rows of dy · x · r
// silu_times_row            y = silu(gate) · up
// rotate_head               (a, b) of a head's two halves become (a cos - b sin, b cos + a sin); direction -1: back
// cross_entropy_row         log Σ e^logits - logits[target]; with `gradient`, logits become softmax - onehot

namespace troupe::detail {

#define TROUPE_DECLARE(T)                                                                                                                        \
  void rms_norm_rows(const T* x, const T* weight, T* y, float* scales, std::int64_t rows, std::int64_t d, float eps);                            \
  void rms_norm_rows_backward(const T* x, const T* weight, const T* dy, const float* scales, T* dx, std::int64_t rows, std::int64_t d);          \
  void rms_norm_weight_backward(const T* x, const T* dy, const float* scales, float* d_weight, std::int64_t rows, std::int64_t d,                \
                                std::int64_t begin, std::int64_t end);                                                                           \
  void silu_times_row(const T* gate, const T* up, T* y, std::int64_t n);                                                                         \
  void silu_times_row_backward(const T* gate, const T* up, const T* dy, T* d_gate, T* d_up, std::int64_t n);                                     \
  void rotate_head(const T* x, T* y, const float* cos, const float* sin, std::int64_t half, float direction);                                    \
  float cross_entropy_row(T* logits, std::int64_t n, std::int64_t target, bool gradient);
TROUPE_DECLARE(float)
TROUPE_DECLARE(Bf16)
#undef TROUPE_DECLARE

}  // namespace troupe::detail
