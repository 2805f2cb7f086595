#pragma once

#include <cstdint>

namespace at {
class Tensor;
}

namespace troupe {

/// GLUE's two figures for MRPC: accuracy, and F1 of label 1.
class PairScores {
 public:
  /// @param predicted [B] 0 or 1; @param labels [B]. Throws Failure{InvalidArgument} when their
  /// shapes differ.
  void add(const at::Tensor& predicted, const at::Tensor& labels);
  /// 0 when nothing was added.
  [[nodiscard]] double accuracy() const noexcept;
  /// 0 when label 1 was neither there nor predicted.
  [[nodiscard]] double f1() const noexcept;
  [[nodiscard]] std::int64_t count() const noexcept { return count_; }

 private:
  std::int64_t count_ = 0;
  std::int64_t right_ = 0;
  std::int64_t true_positives_ = 0;
  std::int64_t predicted_or_real_ = 0;  ///< predicted positives plus real ones
};

}  // namespace troupe
