#include "decoder_kernels.hpp"

namespace troupe::detail {

namespace {

// One register of AVX-512, or several smaller ones; loads need no alignment. (Compilers do not keep arrays of sums in registers by themselves.)
constexpr std::int64_t lanes = 16;
using Floats = float __attribute__((vector_size(64), aligned(4), may_alias));
using Words = std::uint32_t __attribute__((vector_size(64), aligned(4), may_alias));
using Halves = std::uint16_t __attribute__((vector_size(32), aligned(2), may_alias));

TROUPE_MODEL_INLINE void load(Floats& to, const float* from) { to = *reinterpret_cast<const Floats*>(from); }
TROUPE_MODEL_INLINE void load(Floats& to, const Bf16* from) {
  const Words bits = __builtin_convertvector(*reinterpret_cast<const Halves*>(from), Words) << 16;
  to = reinterpret_cast<const Floats&>(bits);
}

/// R rows of the matrix by M rows of x: R · M sums side by side hide the latency of one.
template <int R, int M, class T>
TROUPE_MODEL_INLINE void multiply_block(const T* __restrict w, const float* __restrict x, float* __restrict y, std::int64_t columns, std::int64_t y_stride) {
  Floats sums[R][M] = {};
  std::int64_t c = 0;
  for (; c + lanes <= columns; c += lanes) {
    Floats rows[M];
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) load(rows[m], x + m * columns + c);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      Floats value;
      load(value, w + r * columns + c);
      __builtin_prefetch(w + (r + R) * columns + c);  // rows are too short for the processor's own guesses
#pragma GCC unroll 8
      for (int m = 0; m < M; ++m) sums[r][m] += value * rows[m];
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) {
      float sum = 0;
      for (int l = 0; l < lanes; ++l) sum += sums[r][m][l];
      for (auto rest = c; rest < columns; ++rest) sum += widen(w[r * columns + rest]) * x[m * columns + rest];
      y[m * y_stride + r] = sum;
    }
  }
}

template <int M, class T>
TROUPE_MODEL_INLINE void multiply_few(const T* w, const float* x, float* y, std::int64_t columns, std::int64_t y_stride, std::int64_t begin, std::int64_t end) {
  constexpr int R = M == 1 ? 8 : 4;
  auto row = begin;
  for (; row + R <= end; row += R) multiply_block<R, M>(w + row * columns, x, y + row, columns, y_stride);
  for (; row < end; ++row) multiply_block<1, M>(w + row * columns, x, y + row, columns, y_stride);
}

template <class T>
TROUPE_MODEL_INLINE void multiply(const T* w, const float* x, float* y, std::int64_t columns, std::int64_t m, std::int64_t y_stride, std::int64_t begin,
                                  std::int64_t end) {
  constexpr std::int64_t block = 16;  // rows of the matrix that stay in the cache for all rows of x
  if (m == 1) return multiply_few<1>(w, x, y, columns, y_stride, begin, end);
  for (auto from = begin; from < end; from += block) {
    const auto to = from + block < end ? from + block : end;
    std::int64_t i = 0;
    for (; i + 4 <= m; i += 4) multiply_few<4>(w, x + i * columns, y + i * y_stride, columns, y_stride, from, to);
    for (; i + 2 <= m; i += 2) multiply_few<2>(w, x + i * columns, y + i * y_stride, columns, y_stride, from, to);
    for (; i < m; ++i) multiply_few<1>(w, x + i * columns, y + i * y_stride, columns, y_stride, from, to);
  }
}

// Clones of templates are not made: one function for each type.
TROUPE_MODEL_CLONES void multiply_float(const float* w, const float* x, float* y, std::int64_t columns, std::int64_t m, std::int64_t stride, std::int64_t a,
                                        std::int64_t b) {
  multiply(w, x, y, columns, m, stride, a, b);
}
TROUPE_MODEL_CLONES void multiply_bf16(const Bf16* w, const float* x, float* y, std::int64_t columns, std::int64_t m, std::int64_t stride, std::int64_t a,
                                       std::int64_t b) {
  multiply(w, x, y, columns, m, stride, a, b);
}

template <class T>
TROUPE_MODEL_INLINE void attend(const float* __restrict q, const T* __restrict keys, const T* __restrict values, float* __restrict out, float* __restrict scores,
                                std::int64_t heads, std::int64_t tokens, std::int64_t k, float scale) {
  for (std::int64_t h = 0; h < heads; ++h) {
    float* __restrict row = scores + h * tokens;
    float most = -1e30F;
    for (std::int64_t s = 0; s < tokens; ++s) {
      float dot = 0;
#pragma omp simd reduction(+ : dot)
      for (std::int64_t i = 0; i < k; ++i) dot += q[h * k + i] * widen(keys[s * k + i]);
      row[s] = dot * scale;
      most = row[s] > most ? row[s] : most;
    }
    float total = 0;
#pragma omp simd reduction(+ : total)
    for (std::int64_t s = 0; s < tokens; ++s) {
      row[s] = exp_of(row[s] - most);
      total += row[s];
    }
    const float inverse = 1 / total;
    for (std::int64_t i = 0; i < k; ++i) out[h * k + i] = 0;
    for (std::int64_t s = 0; s < tokens; ++s) {
      const float weight = row[s] * inverse;
      for (std::int64_t i = 0; i < k; ++i) out[h * k + i] += weight * widen(values[s * k + i]);
    }
  }
}

TROUPE_MODEL_CLONES float largest(const float* values, std::int64_t n) {
  float most = values[0];
#pragma omp simd reduction(max : most)
  for (std::int64_t i = 0; i < n; ++i) most = values[i] > most ? values[i] : most;
  return most;
}

}  // namespace

void multiply_rows(const MatrixView& w, const float* x, float* y, std::int64_t m, std::int64_t y_stride, std::int64_t begin, std::int64_t end) {
  if (w.is_bf16) multiply_bf16(static_cast<const Bf16*>(w.data), x, y, w.columns, m, y_stride, begin, end);
  else multiply_float(static_cast<const float*>(w.data), x, y, w.columns, m, y_stride, begin, end);
}

TROUPE_MODEL_CLONES void attend_tokens(const float* q, const float* keys, const float* values, float* out, float* scores, std::int64_t heads, std::int64_t tokens,
                                       std::int64_t k, float scale) {
  attend(q, keys, values, out, scores, heads, tokens, k, scale);
}
TROUPE_MODEL_CLONES void attend_tokens(const float* q, const Bf16* keys, const Bf16* values, float* out, float* scores, std::int64_t heads, std::int64_t tokens,
                                       std::int64_t k, float scale) {
  attend(q, keys, values, out, scores, heads, tokens, k, scale);
}

std::int64_t index_of_largest(const float* values, std::int64_t n) {
  const float most = largest(values, n);
  for (std::int64_t i = 0; i < n; ++i) {
    if (values[i] == most) return i;
  }
  return 0;
}

}  // namespace troupe::detail
