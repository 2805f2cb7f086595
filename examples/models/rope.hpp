#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <troupe/llama.hpp>
#include <vector>

// B: batch, T: tokens, H: heads, K: size of a head, P: positions

namespace troupe::detail {

/// Cosines and sines of the rotary angles, [P, K/2] each, fp32.
struct RopeTable {
  at::Tensor cos_PK2, sin_PK2;
};

/// Rotary positions (Su et al., arXiv 2104.09864) with transformers' scalings. Tables grow as longer sequences come.
class RopeTables {
 public:
  RopeTables() = default;
  explicit RopeTables(const LlamaConfig& config);
  /// Of positions 0 to `positions` - 1, at least. @param length of the sequence, which "dynamic" scales by.
  [[nodiscard]] RopeTable table(std::int64_t positions, std::int64_t length);

 private:
  [[nodiscard]] std::vector<double> inverse_frequencies(std::int64_t length) const;

  RopeScaling scaling_;
  double theta_ = 0, attention_factor_ = 1;
  std::int64_t head_size_ = 0, max_positions_ = 0;
  std::int64_t length_ = 0;  // that a dynamic table is made for
  RopeTable table_;
};

/// The heads of x [B,T,H·K] as [B,H,T,K], each turned by the angles of its position.
/// @param positions_BT  undefined: offset, offset + 1, … in every row.
[[nodiscard]] at::Tensor rotate_heads(const at::Tensor& x, std::int64_t heads, const RopeTable& rope, const at::Tensor& positions_BT, std::int64_t offset);

}  // namespace troupe::detail
