#include <device_gradients.hpp>
#include <gradients.hpp>

#include <troupe/errors.hpp>

#include <ATen/Parallel.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/full.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/zeros.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

namespace troupe::detail {
namespace {

constexpr double inf = std::numeric_limits<double>::infinity();

/// Sizes round a vector, a block of 65,536 and several of them.
const std::vector<std::int64_t> sizes{0, 1, 31, 33, 65536, 65537, 131'075};

struct Gradients : testing::TestWithParam<at::ScalarType> {
  [[nodiscard]] std::vector<at::Tensor> random() const {
    std::vector<at::Tensor> list{at::Tensor{}};
    for (const auto n : sizes) list.push_back(at::randn({n}).to(GetParam()));
    list.push_back(at::randn({6, 10}).to(GetParam()).t().narrow(0, 2, 5));  // neither contiguous nor dense
    return list;
  }
};

TEST_P(Gradients, UnscaleMultipliesAsGradScalerDoes) {
  const auto list = random();
  std::vector<at::Tensor> before;
  for (const auto& g : list) before.push_back(g.defined() ? g.clone() : g);
  EXPECT_FALSE(unscale_(list, 3.0));
  const auto factor = static_cast<double>(static_cast<float>(1.0 / 3.0));
  for (std::size_t i = 1; i < list.size(); ++i) {
    const auto computed = GetParam() == at::kDouble ? before[i] : before[i].to(at::kFloat);
    EXPECT_TRUE(at::equal(list[i], computed.mul(factor).to(GetParam()))) << i;
  }
}

TEST_P(Gradients, OnADeviceLibTorchsOperationsGiveTheSame) {
  const auto list = random();
  const auto copies = [&] {
    std::vector<at::Tensor> all;
    for (const auto& g : list) {
      if (g.defined() && g.numel() > 0) all.push_back(g.clone());
    }
    return all;
  };
  const auto ours = copies(), theirs = copies();
  EXPECT_NEAR(sum_of_squares_by_operations(theirs), sum_of_squares(ours), 1e-12 * sum_of_squares(ours));
  scale_(ours, 0.3F);
  scale_by_operations(theirs, 0.3F);
  clamp_(ours, 0.1F);
  clamp_by_operations(theirs, 0.1F);
  for (std::size_t i = 0; i < ours.size(); ++i) EXPECT_TRUE(at::equal(ours[i], theirs[i])) << i;
  EXPECT_FALSE(multiply_by_operations(theirs, 0.5F));
  theirs[2].fill_(inf);
  EXPECT_TRUE(multiply_by_operations(theirs, 0.5F));
  EXPECT_FALSE(all_finite_by_operations(theirs));
  EXPECT_TRUE(all_finite_by_operations({}));
  EXPECT_EQ(sum_of_squares_by_operations({}), 0);
}

TEST_P(Gradients, AnInfinityOrNanIsFoundWhereverItIs) {
  const auto list = random();
  EXPECT_TRUE(all_finite(list));
  for (const double bad : {inf, -inf, std::nan("")}) {
    for (const std::int64_t at : {0, 17, 65536, 131'074}) {
      const auto good = list[7][at].item<double>();
      list[7][at] = bad;
      EXPECT_FALSE(all_finite(list)) << bad << " at " << at;
      EXPECT_FALSE(std::isfinite(sum_of_squares(list)));
      EXPECT_TRUE(unscale_(list, 1.0)) << bad << " at " << at;
      list[7][at] = good;
    }
  }
}

TEST_P(Gradients, SumOfSquaresIsAddedInDoublePrecision) {
  const auto list = random();
  double expected = 0;
  for (const auto& g : list) {
    if (g.defined()) expected += g.to(at::kDouble).square().sum().item<double>();
  }
  EXPECT_NEAR(sum_of_squares(list), expected, 1e-12 * expected);
}

TEST_P(Gradients, ScaleAndClampReachEveryElement) {
  auto list = random();
  std::vector<at::Tensor> before;
  for (const auto& g : list) before.push_back(g.defined() ? g.clone() : g);
  scale_(list, 2.0F);
  for (std::size_t i = 1; i < list.size(); ++i) EXPECT_TRUE(at::equal(list[i], before[i].mul(2))) << i;
  clamp_(list, 0.5F);
  for (std::size_t i = 1; i < list.size(); ++i) EXPECT_TRUE(at::equal(list[i], before[i].mul(2).clamp(-0.5, 0.5))) << i;
}

INSTANTIATE_TEST_SUITE_P(Dtypes, Gradients, testing::Values(at::kFloat, at::kDouble, at::kBFloat16, at::kHalf),
                         [](const auto& instance) { return std::string{c10::toString(instance.param)}; });

TEST(SumOfSquares, IsTheSameForAnyNumberOfThreads) {
  const auto g = at::randn({1'000'003});
  const auto threads = at::get_num_threads();
  at::set_num_threads(1);
  const auto one = sum_of_squares({g});
  at::set_num_threads(2);
  const auto two = sum_of_squares({g});
  at::set_num_threads(threads);
  EXPECT_EQ(one, two);
}

TEST(SumOfSquares, HoldsWhatFp32CouldNot) {
  const auto expected = (1 << 20) * std::pow(static_cast<double>(1e30F), 2);
  EXPECT_NEAR(sum_of_squares({at::full({1 << 20}, 1e30F)}), expected, 1e-12 * expected);
}

TEST(Clamp, LeavesNan) {
  auto g = at::zeros({3});
  g[1] = std::nan("");
  clamp_({g}, 1.0F);
  EXPECT_TRUE(std::isnan(g[1].item<float>()));
}

TEST(GradientLists, RefuseIntegersByName) { EXPECT_THROW(scale_({at::arange(4)}, 1.0F), Failure); }

}  // namespace
}  // namespace troupe::detail
