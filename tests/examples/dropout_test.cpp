#include "../../examples/models/dropout.hpp"

#include <ATen/TensorOperators.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/ones.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/variable.h>

#include <troupe/random.hpp>

namespace troupe::detail {
namespace {

double mean(const at::Tensor& t) { return t.to(at::kDouble).mean().item<double>(); }

TEST(dropout, KeepsTheMeanAndDropsTheGivenShare) {
  for (const auto dtype : {at::kFloat, at::kBFloat16, at::kDouble}) {
    for (const double p : {0.1, 0.5}) {
      set_seed(5);
      const auto x = at::ones({1000, 1003}, dtype);
      const auto y = dropout(x, p);
      EXPECT_NEAR(mean(y.eq(0)), p, 0.002) << dtype;
      EXPECT_NEAR(mean(y), 1, 0.01) << dtype;
    }
  }
}

TEST(dropout, DrawsOfNeighboursRowsAndCallsAreIndependent) {
  set_seed(6);
  const auto zero = dropout(at::ones({1000, 1024}), 0.5).eq(0).to(at::kDouble);
  const auto other = dropout(at::ones({1000, 1024}), 0.5).eq(0).to(at::kDouble);
  EXPECT_NEAR(mean(zero * other), 0.25, 0.002);
  for (const std::int64_t lag : {1, 2, 15, 16, 17, 31, 32, 33, 64, 512}) {
    EXPECT_NEAR(mean(zero.narrow(1, 0, 1024 - lag) * zero.narrow(1, lag, 1024 - lag)), 0.25, 0.003)
        << lag;
  }
  EXPECT_NEAR(mean(zero.narrow(0, 0, 999) * zero.narrow(0, 1, 999)), 0.25, 0.002);
  EXPECT_NEAR(zero.mean(0).max().item<double>(), 0.5, 0.08);
}

TEST(dropout, GradientsPassWhereValuesDo) {
  auto x = at::ones({64, 33}).set_requires_grad(true);
  const auto y = dropout(x, 0.3);
  y.sum().backward();
  EXPECT_TRUE(x.grad().equal(y.detach()));
}

TEST(dropout, WithoutARateNothingIsDrawn) {
  set_seed(8);
  const auto first = dropout(at::ones({100}), 0.5);
  set_seed(8);
  const auto x = at::ones({100});
  EXPECT_TRUE(dropout(x, 0).is_same(x));
  EXPECT_TRUE(dropout(at::ones({100}), 0.5).equal(first));
}

}  // namespace
}  // namespace troupe::detail
