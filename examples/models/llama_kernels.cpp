#include "llama_kernels.hpp"

namespace troupe::detail {

namespace {

template <class T>
TROUPE_MODEL_INLINE void rms_rows(const T* __restrict x, const T* __restrict weight, T* __restrict y, float* __restrict scales, std::int64_t rows, std::int64_t d,
                                  float eps) {
  for (std::int64_t r = 0; r < rows; ++r, x += d, y += d) {
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (std::int64_t i = 0; i < d; ++i) sum += widen(x[i]) * widen(x[i]);
    const float scale = 1 / std::sqrt(sum / static_cast<float>(d) + eps);
    scales[r] = scale;
    for (std::int64_t i = 0; i < d; ++i) put(y[i], widen(x[i]) * scale * widen(weight[i]));
  }
}

template <class T>
TROUPE_MODEL_INLINE void rms_rows_backward(const T* __restrict x, const T* __restrict weight, const T* __restrict dy, const float* __restrict scales,
                                           T* __restrict dx, std::int64_t rows, std::int64_t d) {
  for (std::int64_t r = 0; r < rows; ++r, x += d, dy += d, dx += d) {
    float dot = 0;
#pragma omp simd reduction(+ : dot)
    for (std::int64_t i = 0; i < d; ++i) dot += widen(dy[i]) * widen(weight[i]) * widen(x[i]);
    const float scale = scales[r];
    const float pull = dot * scale * scale * scale / static_cast<float>(d);
    for (std::int64_t i = 0; i < d; ++i) put(dx[i], widen(dy[i]) * widen(weight[i]) * scale - widen(x[i]) * pull);
  }
}

template <class T>
TROUPE_MODEL_INLINE void rms_weight(const T* __restrict x, const T* __restrict dy, const float* __restrict scales, float* __restrict d_weight, std::int64_t rows,
                                    std::int64_t d, std::int64_t begin, std::int64_t end) {
  for (std::int64_t r = 0; r < rows; ++r, x += d, dy += d) {
    for (std::int64_t i = begin; i < end; ++i) d_weight[i] += widen(dy[i]) * widen(x[i]) * scales[r];
  }
}

template <class T>
TROUPE_MODEL_INLINE void silu_row(const T* __restrict gate, const T* __restrict up, T* __restrict y, std::int64_t n) {
  for (std::int64_t i = 0; i < n; ++i) {
    const float g = widen(gate[i]);
    put(y[i], g / (1 + exp_of(-g)) * widen(up[i]));
  }
}

template <class T>
TROUPE_MODEL_INLINE void silu_row_backward(const T* __restrict gate, const T* __restrict up, const T* __restrict dy, T* __restrict d_gate, T* __restrict d_up,
                                           std::int64_t n) {
  for (std::int64_t i = 0; i < n; ++i) {
    const float g = widen(gate[i]);
    const float s = 1 / (1 + exp_of(-g));
    const float d = widen(dy[i]);
    put(d_up[i], d * g * s);
    put(d_gate[i], d * widen(up[i]) * s * (1 + g * (1 - s)));
  }
}

template <class T>
TROUPE_MODEL_INLINE void rotate_one(const T* __restrict x, T* __restrict y, const float* __restrict cos, const float* __restrict sin, std::int64_t half, float direction) {
  for (std::int64_t i = 0; i < half; ++i) {
    const float a = widen(x[i]), b = widen(x[i + half]);
    put(y[i], a * cos[i] - direction * b * sin[i]);
    put(y[i + half], b * cos[i] + direction * a * sin[i]);
  }
}

template <class T>
TROUPE_MODEL_INLINE float cross_entropy(T* __restrict logits, std::int64_t n, std::int64_t target, bool gradient) {
  float most = widen(logits[0]);
#pragma omp simd reduction(max : most)
  for (std::int64_t i = 0; i < n; ++i) most = widen(logits[i]) > most ? widen(logits[i]) : most;
  const float at_target = widen(logits[target]);
  double total = 0;  // of blocks: a vocabulary in one fp32 sum would round
  for (std::int64_t begin = 0; begin < n; begin += 1024) {
    const auto end = begin + 1024 < n ? begin + 1024 : n;
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (std::int64_t i = begin; i < end; ++i) sum += exp_of(widen(logits[i]) - most);
    total += sum;
  }
  if (gradient) {
    const auto inverse = static_cast<float>(1 / total);
    for (std::int64_t i = 0; i < n; ++i) put(logits[i], exp_of(widen(logits[i]) - most) * inverse);
    put(logits[target], static_cast<float>(std::exp(static_cast<double>(at_target) - most) / total - 1));
  }
  return static_cast<float>(std::log(total) + most - at_target);
}

}  // namespace

// Clones of templates are not made: one function for each type.
#define TROUPE_DEFINE(T)                                                                                                                       \
  TROUPE_MODEL_CLONES void rms_norm_rows(const T* x, const T* weight, T* y, float* scales, std::int64_t rows, std::int64_t d, float eps) {      \
    rms_rows(x, weight, y, scales, rows, d, eps);                                                                                              \
  }                                                                                                                                            \
  TROUPE_MODEL_CLONES void rms_norm_rows_backward(const T* x, const T* weight, const T* dy, const float* scales, T* dx, std::int64_t rows,      \
                                                  std::int64_t d) {                                                                            \
    rms_rows_backward(x, weight, dy, scales, dx, rows, d);                                                                                     \
  }                                                                                                                                            \
  TROUPE_MODEL_CLONES void rms_norm_weight_backward(const T* x, const T* dy, const float* scales, float* d_weight, std::int64_t rows,           \
                                                    std::int64_t d, std::int64_t begin, std::int64_t end) {                                    \
    rms_weight(x, dy, scales, d_weight, rows, d, begin, end);                                                                                  \
  }                                                                                                                                            \
  TROUPE_MODEL_CLONES void silu_times_row(const T* gate, const T* up, T* y, std::int64_t n) { silu_row(gate, up, y, n); }                       \
  TROUPE_MODEL_CLONES void silu_times_row_backward(const T* gate, const T* up, const T* dy, T* d_gate, T* d_up, std::int64_t n) {               \
    silu_row_backward(gate, up, dy, d_gate, d_up, n);                                                                                          \
  }                                                                                                                                            \
  TROUPE_MODEL_CLONES void rotate_head(const T* x, T* y, const float* cos, const float* sin, std::int64_t half, float direction) {              \
    rotate_one(x, y, cos, sin, half, direction);                                                                                               \
  }                                                                                                                                            \
  TROUPE_MODEL_CLONES float cross_entropy_row(T* logits, std::int64_t n, std::int64_t target, bool gradient) {                                  \
    return cross_entropy(logits, n, target, gradient);                                                                                         \
  }

TROUPE_DEFINE(float)
TROUPE_DEFINE(Bf16)

}  // namespace troupe::detail
