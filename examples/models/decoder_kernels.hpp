#pragma once

#include <cstdint>

#include "vector_loops.hpp"

// Loops of generation: a few rows through matrices that are read once from memory. Sums in fp32.

namespace troupe::detail {

/// A matrix [rows, columns] of fp32 or bf16, row-major.
struct MatrixView {
  const void* data = nullptr;
  bool is_bf16 = false;
  std::int64_t rows = 0, columns = 0;
};

/// y[m][row] = x[m] · w[row] for rows [begin, end); y and x have `m` rows, `y_stride` and w.columns apart.
void multiply_rows(const MatrixView& w, const float* x, float* y, std::int64_t m, std::int64_t y_stride, std::int64_t begin, std::int64_t end);

/// softmax(q k^T · scale) v for `heads` queries q [heads, k] that share keys and values [tokens, k].
/// @param scores  scratch of heads · tokens
void attend_tokens(const float* q, const float* keys, const float* values, float* out, float* scores, std::int64_t heads, std::int64_t tokens, std::int64_t k,
                   float scale);
void attend_tokens(const float* q, const Bf16* keys, const Bf16* values, float* out, float* scores, std::int64_t heads, std::int64_t tokens, std::int64_t k,
                   float scale);

/// The index of the largest; the first of several.
[[nodiscard]] std::int64_t index_of_largest(const float* values, std::int64_t n);

}  // namespace troupe::detail
