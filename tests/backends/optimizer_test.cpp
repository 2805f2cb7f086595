#include <troupe/errors.hpp>
#include <troupe/optimizer.hpp>

#include <ATen/core/grad_mode.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/full.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/randn_like.h>
#include <ATen/ops/zeros_like.h>
#include <gtest/gtest.h>

#include <cmath>

namespace troupe {
namespace {

at::Tensor leaf(at::IntArrayRef sizes) {
  auto tensor = at::randn(sizes);
  return tensor.requires_grad_(true);
}

/// The paper's algorithm 2 in double precision, element by element.
struct Reference {
  std::vector<double> w, m, v;
  int t = 0;
  explicit Reference(const at::Tensor& p) {
    const auto flat = p.detach().reshape(-1);
    for (std::int64_t i = 0; i < flat.numel(); ++i) w.push_back(flat[i].item<double>());
    m.resize(w.size());
    v.resize(w.size());
  }
  void step(const at::Tensor& grad, double lr, double wd, const AdamWOptions& o) {
    ++t;
    const auto g = grad.reshape(-1);
    for (std::size_t i = 0; i < w.size(); ++i) {
      const auto gi = g[static_cast<std::int64_t>(i)].item<double>();
      w[i] -= lr * wd * w[i];
      m[i] = o.beta1 * m[i] + (1 - o.beta1) * gi;
      v[i] = o.beta2 * v[i] + (1 - o.beta2) * gi * gi;
      const auto mh = m[i] / (1 - std::pow(o.beta1, t));
      const auto vh = v[i] / (1 - std::pow(o.beta2, t));
      w[i] -= lr * mh / (std::sqrt(vh) + o.eps);
    }
  }
  double distance(const at::Tensor& p) const {
    const auto flat = p.detach().reshape(-1);
    double worst = 0;
    for (std::size_t i = 0; i < w.size(); ++i) worst = std::max(worst, std::abs(w[i] - flat[static_cast<std::int64_t>(i)].item<double>()));
    return worst;
  }
};

TEST(AdamW, FollowsThePaperInEveryGroup) {
  const AdamWOptions options{.lr = 0.01, .beta1 = 0.8, .beta2 = 0.95, .eps = 1e-7, .weight_decay = 0.1};
  auto a = leaf({3, 5});
  auto b = leaf({7});
  AdamW optimizer{{ParamGroup{.params = {a}}, ParamGroup{.params = {b}, .lr = 0.002, .weight_decay = 0}}, options};
  Reference ra{a}, rb{b};
  for (int i = 0; i < 12; ++i) {
    a.mutable_grad() = at::randn_like(a).detach();
    b.mutable_grad() = at::randn_like(b).detach();
    optimizer.step();
    ra.step(a.grad(), 0.01, 0.1, options);
    rb.step(b.grad(), 0.002, 0, options);
  }
  EXPECT_LT(ra.distance(a), 2e-6);
  EXPECT_LT(rb.distance(b), 2e-6);
}

TEST(AdamW, LeavesAParameterWithoutGradientAlone) {
  auto a = leaf({4});
  auto b = leaf({4});
  const auto before = b.detach().clone();
  AdamW optimizer{{a, b}, {.lr = 0.1}};
  Reference rb{b};
  a.mutable_grad() = at::randn({4});
  optimizer.step();
  EXPECT_TRUE(at::equal(b.detach(), before));
  b.mutable_grad() = at::randn({4});
  optimizer.step();  // b's first update: its bias correction starts now
  rb.step(b.grad(), 0.1, 1e-2, {.lr = 0.1});
  EXPECT_LT(rb.distance(b), 1e-6);
}

TEST(AdamW, ContinuesBitForBitFromLoadedState) {
  auto a = leaf({6, 2});
  AdamW one{std::vector<at::Tensor>{a}, {.lr = 0.05}};
  const auto grads = at::randn({6, 6, 2});
  const auto run = [&](AdamW& optimizer, at::Tensor& p, int from, int to) {
    for (int i = from; i < to; ++i) {
      p.mutable_grad() = grads[i].clone();
      optimizer.step();
    }
  };
  run(one, a, 0, 3);
  auto b = a.detach().clone().requires_grad_(true);
  AdamW two{std::vector<at::Tensor>{b}, {.lr = 0.05}};
  two.load_state(one.state());
  run(one, a, 3, 6);
  run(two, b, 3, 6);
  EXPECT_TRUE(at::equal(a.detach(), b.detach()));
}

TEST(AdamW, RefusesStateOfOtherParameters) {
  auto a = leaf({6});
  auto b = leaf({5});
  AdamW one{std::vector<at::Tensor>{a}, {}};
  AdamW two{std::vector<at::Tensor>{b}, {}};
  a.mutable_grad() = at::randn({6});
  one.step();
  EXPECT_THROW(two.load_state(one.state()), Failure);
}

TEST(AdamW, RefusesSettingsOutOfRange) {
  auto a = leaf({2});
  EXPECT_THROW((AdamW{std::vector<at::Tensor>{a}, {.lr = -1}}), Failure);
  EXPECT_THROW((AdamW{std::vector<at::Tensor>{a}, {.beta1 = 1}}), Failure);
  EXPECT_THROW((AdamW{std::vector<at::Tensor>{a}, {.eps = std::nan("")}}), Failure);
}

TEST(Optimizer, RefusesParametersThatAreNoLeavesOrGivenTwice) {
  auto a = leaf({2});
  EXPECT_THROW((AdamW{std::vector<at::Tensor>{a.mul(2)}, {}}), Failure);
  EXPECT_THROW((AdamW{std::vector<at::Tensor>{a, a}, {}}), Failure);
  EXPECT_THROW((AdamW{std::vector<at::Tensor>{}, {}}), Failure);
}

TEST(Optimizer, ZeroGradForgetsOrZeroes) {
  auto a = leaf({2});
  AdamW optimizer{std::vector<at::Tensor>{a}, {}};
  a.mutable_grad() = at::randn({2});
  const auto kept = a.grad();
  optimizer.zero_grad(false);
  EXPECT_TRUE(at::equal(kept, at::zeros_like(kept)));
  optimizer.zero_grad();
  EXPECT_FALSE(a.grad().defined());
}

TEST(Optimizer, DoesNothingWhileItsGateIsClosed) {
  auto a = leaf({2});
  AdamW optimizer{std::vector<at::Tensor>{a}, {}};
  auto gate = std::make_shared<StepGate>(StepGate{.sync = false});
  optimizer.set_gate(gate);
  a.mutable_grad() = at::full({2}, 1.0);
  const auto before = a.detach().clone();
  optimizer.step();
  optimizer.zero_grad();
  EXPECT_TRUE(at::equal(a.detach(), before));
  EXPECT_TRUE(a.grad().defined());
  gate->sync = true;
  optimizer.step();
  EXPECT_FALSE(at::equal(a.detach(), before));
}

TEST(Optimizer, SkipsTheStepButForgetsGradientsThatOverflowed) {
  auto a = leaf({2});
  AdamW optimizer{std::vector<at::Tensor>{a}, {}};
  auto gate = std::make_shared<StepGate>(StepGate{.skip = true});
  optimizer.set_gate(gate);
  a.mutable_grad() = at::full({2}, 1.0);
  const auto before = a.detach().clone();
  optimizer.step();
  EXPECT_TRUE(at::equal(a.detach(), before));
  optimizer.zero_grad();
  EXPECT_FALSE(a.grad().defined());
}

TEST(Optimizer, TrainsThePiecesItIsPointedAt) {
  auto a = leaf({4, 2});
  auto b = leaf({3});
  AdamW optimizer{{ParamGroup{.params = {a}}, ParamGroup{.params = {b}, .lr = 0.5}}, {.lr = 0.1}};
  auto flat = at::randn({9});
  auto piece_a = flat.narrow(0, 0, 4).detach().requires_grad_(true);
  auto piece_b = flat.narrow(0, 4, 0).detach().requires_grad_(true);
  const auto before = flat.clone();
  optimizer.repoint({{piece_a}, {piece_b}});
  ASSERT_EQ(optimizer.handles().size(), 2U);
  EXPECT_TRUE(optimizer.handles()[1].is_same(b));
  a.mutable_grad() = at::full({4, 2}, 1.0);
  piece_a.mutable_grad() = at::full({4}, 1.0);
  piece_b.mutable_grad() = at::full({0}, 1.0);
  const auto a_before = a.detach().clone();
  optimizer.step();
  EXPECT_TRUE(at::equal(a.detach(), a_before));
  EXPECT_FALSE(at::equal(flat.narrow(0, 0, 4), before.narrow(0, 0, 4)));
  EXPECT_TRUE(at::equal(flat.narrow(0, 4, 5), before.narrow(0, 4, 5)));
  optimizer.zero_grad();
  EXPECT_FALSE(piece_a.grad().defined());
  EXPECT_THROW(optimizer.repoint({{piece_a}, {piece_b}}), Failure);  // there is state now
}

TEST(Optimizer, RefusesPiecesOfOtherCounts) {
  auto a = leaf({2});
  AdamW optimizer{std::vector<at::Tensor>{a}, {}};
  EXPECT_THROW(optimizer.repoint({{leaf({1}), leaf({1})}}), Failure);
  EXPECT_THROW(optimizer.repoint({{leaf({1})}, {}}), Failure);
  EXPECT_THROW(optimizer.repoint({{at::Tensor{}}}), Failure);
}

}  // namespace
}  // namespace troupe
