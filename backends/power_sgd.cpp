#include "power_sgd.hpp"
#include "c10d/tensor_buffer.hpp"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/autocast_mode.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/zeros.h>
#include <c10/core/impl/LocalDispatchKeySet.h>

#include <algorithm>
#include <cmath>

namespace troupe::detail {

namespace {

/// No gradients and no autocast: factors are computed in the bucket's type.
struct Arithmetic {
  at::NoGradGuard no_grad;
  c10::impl::ExcludeDispatchKeyGuard no_autocast{c10::autocast_dispatch_keyset};
};

/// A column that is this much shorter than it was is what rounding left of nothing.
constexpr double vanished = 1e-6;

template <class T>
double dot(const T* a, const T* b, std::int64_t n, std::int64_t stride) {
  double sum = 0;
  for (std::int64_t i = 0; i < n; ++i) sum += static_cast<double>(a[i * stride]) * static_cast<double>(b[i * stride]);
  return sum;
}

/// Makes column `c` orthonormal to the ones before it; false when nothing is left of it.
template <class T>
bool orthonormalize_column(T* m, std::int64_t n, std::int64_t r, std::int64_t c, double before, double epsilon) {
  for (int pass = 0; pass < 2; ++pass) {
    for (std::int64_t k = 0; k < c; ++k) {
      const auto factor = dot(m + c, m + k, n, r);
      for (std::int64_t i = 0; i < n; ++i) m[i * r + c] = static_cast<T>(m[i * r + c] - factor * m[i * r + k]);
    }
  }
  const auto norm = std::sqrt(dot(m + c, m + c, n, r));
  if (!(norm > vanished * before)) return false;
  for (std::int64_t i = 0; i < n; ++i) m[i * r + c] = static_cast<T>(m[i * r + c] / (norm + epsilon));
  return true;
}

template <class T>
bool orthogonalize_as(const at::Tensor& matrix, double epsilon, at::Generator* fresh) {
  const auto n = matrix.size(0), r = matrix.size(1);
  auto* m = matrix.data_ptr<T>();
  bool finite = true;
  for (std::int64_t c = 0; c < r; ++c) {
    for (int draws = 0;; ++draws) {
      const auto before = std::sqrt(dot(m + c, m + c, n, r));
      if (!std::isfinite(before)) {
        finite = false;
        break;
      }
      if (before > 0 && orthonormalize_column(m, n, r, c, before, epsilon)) break;
      auto column = matrix.select(1, c);
      if (!fresh || draws == 3) {
        column.zero_();
        break;
      }
      column.normal_(0, 1, *fresh);
    }
  }
  return finite;
}

}  // namespace

PowerSgdPlan plan_power_sgd(const BucketShape& shape, const CommStateOption& options) {
  PowerSgdPlan plan;
  plan.numel = shape.numel;
  for (const auto& s : shape.segments) {
    const auto cols = s.rows > 0 ? s.numel / s.rows : 0;
    const auto rank = std::min({s.rows, cols, static_cast<std::int64_t>(options.matrix_approximation_rank)});
    const auto sent = static_cast<double>((s.rows + cols) * rank);
    if (s.dims < 2 || rank == 0 || !(sent * options.min_compression_rate < static_cast<double>(s.numel))) {
      plan.rest.push_back({.offset = s.offset, .numel = s.numel});
      continue;
    }
    plan.matrices.push_back({.offset = s.offset, .rows = s.rows, .cols = cols, .rank = rank, .p = plan.p_numel, .q = plan.q_numel});
    plan.p_numel += s.rows * rank;
    plan.q_numel += cols * rank;
  }
  for (auto& rest : plan.rest) {
    rest.at = plan.p_numel;
    plan.p_numel += rest.numel;
  }
  return plan;
}

PowerSgdPlan plan_batched_power_sgd(const BucketShape& shape, const CommStateOption& options) {
  PowerSgdPlan plan;
  if (shape.numel == 0) return plan;
  const auto side = static_cast<std::int64_t>(std::ceil(std::sqrt(static_cast<double>(shape.numel))));
  const auto rank = std::min(side, static_cast<std::int64_t>(options.matrix_approximation_rank));
  plan.matrices.push_back({.rows = side, .cols = side, .rank = rank});
  plan.p_numel = plan.q_numel = side * rank;
  plan.numel = shape.numel;
  plan.padded = side * side;
  plan.segments = shape.segments;
  return plan;
}

bool orthogonalize(const at::Tensor& matrix, double epsilon, at::Generator* fresh) {
  return matrix.scalar_type() == at::kDouble ? orthogonalize_as<double>(matrix, epsilon, fresh)
                                             : orthogonalize_as<float>(matrix, epsilon, fresh);
}

PowerSgdReduction::PowerSgdReduction(Communicator& communicator, PowerSgdPlan plan, at::ScalarType type,
                                     std::optional<at::ScalarType> wire, const CommStateOption& options, std::size_t index)
    : communicator_(communicator),
      plan_(std::move(plan)),
      type_(type),
      wire_(wire),
      options_(options),
      generator_(at::make_generator<at::CPUGeneratorImpl>(options.random_seed + index)),
      whole_(make_all_reduce(communicator, wire)),
      p_reduction_(make_all_reduce(communicator, wire)),
      q_reduction_(make_all_reduce(communicator, wire)) {}

at::Tensor PowerSgdReduction::p(const PowerSgdPlan::Matrix& m) const { return p_flat_.narrow(0, m.p, m.rows * m.rank).view({m.rows, m.rank}); }
at::Tensor PowerSgdReduction::q(const PowerSgdPlan::Matrix& m) const { return q_flat_.narrow(0, m.q, m.cols * m.rank).view({m.cols, m.rank}); }
at::Tensor PowerSgdReduction::input(const PowerSgdPlan::Matrix& m) const {
  const auto& all = options_.use_error_feedback ? error_ : plan_.padded ? square_ : gradients_;
  return all.narrow(0, m.offset, m.rows * m.cols).view({m.rows, m.cols});
}

void PowerSgdReduction::choose_q() {
  if (!q_flat_.defined()) {
    p_flat_ = communicator_tensor(communicator_, plan_.p_numel, type_);
    q_flat_ = communicator_tensor(communicator_, plan_.q_numel, type_);
  }
  if (fresh_q_ || !options_.warm_start) q_flat_.normal_(0, 1, generator_);
  fresh_q_ = false;
  for (const auto& m : plan_.matrices) orthogonalize(q(m), options_.orthogonalization_epsilon, &generator_);
}

void PowerSgdReduction::start(const at::Tensor& gradients) {
  const Arithmetic arithmetic;
  gradients_ = gradients.view({-1});
  compressed_ = iteration_++ >= options_.start_powerSGD_iter;
  if (!compressed_) return whole_->start(gradients_);
  whole_.reset();  // and the memory of its copy
  choose_q();
  const auto options = gradients_.options().requires_grad(false);
  if (plan_.padded) {
    if (!square_.defined()) square_ = at::zeros({plan_.padded}, options);
    square_.narrow(0, 0, plan_.numel).copy_(gradients_);
  }
  const auto& source = plan_.padded ? square_ : gradients_;
  if (options_.use_error_feedback && !error_.defined()) error_ = at::zeros({source.numel()}, options);
  for (const auto& m : plan_.matrices) {
    if (options_.use_error_feedback) input(m).add_(source.narrow(0, m.offset, m.rows * m.cols).view({m.rows, m.cols}));
    auto out = p(m);
    at::mm_out(out, input(m), q(m));
  }
  for (const auto& r : plan_.rest) p_flat_.narrow(0, r.at, r.numel).copy_(gradients_.narrow(0, r.offset, r.numel));
  p_reduction_->start(p_flat_);
}

bool PowerSgdReduction::poll() { return compressed_ ? p_reduction_->poll() : whole_->poll(); }

void PowerSgdReduction::proceed() {
  if (!compressed_) return;
  const Arithmetic arithmetic;
  p_reduction_->finish();
  for (const auto& m : plan_.matrices) {
    // Not finite on one rank is so in every rank's mean: all of them forget.
    if (!orthogonalize(p(m), options_.orthogonalization_epsilon, nullptr)) fresh_q_ = true;
    auto out = q(m);
    at::mm_out(out, input(m).t(), p(m));
  }
  q_reduction_->start(q_flat_);
}

void PowerSgdReduction::finish() {
  if (!compressed_) {
    whole_->finish();
    return gradients_.reset();
  }
  const Arithmetic arithmetic;
  q_reduction_->finish();
  const auto& target = plan_.padded ? square_ : gradients_;
  for (const auto& m : plan_.matrices) {
    auto out = target.narrow(0, m.offset, m.rows * m.cols).view({m.rows, m.cols});
    at::mm_out(out, p(m), q(m).t());
    if (options_.use_error_feedback) input(m).sub_(out);
  }
  for (const auto& r : plan_.rest) gradients_.narrow(0, r.offset, r.numel).copy_(p_flat_.narrow(0, r.at, r.numel));
  for (const auto& s : plan_.segments) gradients_.narrow(0, s.offset, s.numel).copy_(square_.narrow(0, s.offset, s.numel));
  if (fresh_q_ && error_.defined()) error_.zero_();
  gradients_.reset();
}

}  // namespace troupe::detail
