#include <ATen/core/Tensor.h>

#include <troupe/errors.hpp>
#include <troupe/pair_scores.hpp>

namespace troupe {

void PairScores::add(const at::Tensor& predicted, const at::Tensor& labels) {
  if (predicted.sizes() != labels.sizes()) {
    throw Failure{Errc::InvalidArgument, "scores need as many predictions as labels: " +
                                             std::to_string(predicted.numel()) + " and " +
                                             std::to_string(labels.numel())};
  }
  const auto sum = [](const at::Tensor& t) { return t.sum().item<std::int64_t>(); };
  const auto yes = predicted.eq(1);
  const auto real = labels.eq(1);
  count_ += labels.numel();
  right_ += sum(predicted.eq(labels));
  true_positives_ += sum(yes.logical_and(real));
  predicted_or_real_ += sum(yes) + sum(real);
}

double PairScores::accuracy() const noexcept {
  return count_ == 0 ? 0 : static_cast<double>(right_) / static_cast<double>(count_);
}

double PairScores::f1() const noexcept {
  return predicted_or_real_ == 0
             ? 0
             : 2 * static_cast<double>(true_positives_) / static_cast<double>(predicted_or_real_);
}

}  // namespace troupe
