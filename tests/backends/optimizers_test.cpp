#include <optim/device_kernels.hpp>

#include <troupe/errors.hpp>
#include <troupe/optimizer.hpp>

#include <ATen/Parallel.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/allclose.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/full.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/randn_like.h>
#include <ATen/ops/sign.h>
#include <ATen/ops/zeros.h>
#include <gtest/gtest.h>
#include <torch/optim/adagrad.h>
#include <torch/optim/adam.h>
#include <torch/optim/adamw.h>
#include <torch/optim/sgd.h>

#include <functional>

namespace troupe {
namespace {

at::Tensor leaf(const at::Tensor& values) { return values.detach().clone().requires_grad_(true); }

using Make = std::function<std::unique_ptr<Optimizer>(std::vector<ParamGroup>)>;
struct Kind {
  std::string name;
  Make make;
};

template <class T, class Options>
Kind kind(const std::string& name, Options options) {
  return {name, [options](std::vector<ParamGroup> groups) { return std::make_unique<T>(std::move(groups), options); }};
}

std::vector<Kind> kinds() {
  return {kind<AdamW>("AdamW", AdamWOptions{.lr = 0.02, .weight_decay = 0.1}),
          kind<Adam>("Adam", AdamOptions{.lr = 0.02, .weight_decay = 0.1}),
          kind<SGD>("Sgd", SGDOptions{.lr = 0.05, .weight_decay = 0.1}),
          kind<SGD>("SgdMomentum", SGDOptions{.lr = 0.05, .momentum = 0.9, .dampening = 0.3, .weight_decay = 0.1}),
          kind<SGD>("SgdNesterov", SGDOptions{.lr = 0.05, .momentum = 0.9, .nesterov = true}),
          kind<Adagrad>("Adagrad", AdagradOptions{.lr = 0.05, .lr_decay = 0.1, .weight_decay = 0.1, .initial_accumulator_value = 0.25}),
          kind<Lion>("Lion", LionOptions{.lr = 0.01, .weight_decay = 0.1})};
}

/// Runs ours and LibTorch's side by side: two groups, the second with settings of its own.
template <class Theirs, class Ours>
void expect_as_torch(const Make& make, Theirs options, Ours second, const std::function<void(Theirs&)>& settings_of_second) {
  const auto a0 = at::randn({37, 11}), b0 = at::randn({129});
  const auto a = leaf(a0), b = leaf(b0), ta = leaf(a0), tb = leaf(b0);
  second.params = {b};
  const auto ours = make({ParamGroup{.params = {a}}, second});
  auto other = options;
  settings_of_second(other);
  std::vector<torch::optim::OptimizerParamGroup> groups;
  groups.emplace_back(std::vector<at::Tensor>{ta});
  groups.emplace_back(std::vector<at::Tensor>{tb}, std::make_unique<Theirs>(other));
  const auto step = [&](torch::optim::Optimizer& theirs) {
    for (int i = 0; i < 20; ++i) {
      a.mutable_grad() = at::randn({37, 11});
      b.mutable_grad() = at::randn({129});
      ta.mutable_grad() = a.grad().clone();
      tb.mutable_grad() = b.grad().clone();
      ours->step();
      theirs.step();
    }
  };
  if constexpr (std::is_same_v<Theirs, torch::optim::AdamWOptions>) {
    torch::optim::AdamW theirs{groups, options};
    step(theirs);
  } else if constexpr (std::is_same_v<Theirs, torch::optim::AdamOptions>) {
    torch::optim::Adam theirs{groups, options};
    step(theirs);
  } else if constexpr (std::is_same_v<Theirs, torch::optim::SGDOptions>) {
    torch::optim::SGD theirs{groups, options};
    step(theirs);
  } else {
    torch::optim::Adagrad theirs{groups, options};
    step(theirs);
  }
  EXPECT_TRUE(at::allclose(a.detach(), ta.detach(), 1e-5, 1e-6)) << (a.detach() - ta.detach()).abs().max();
  EXPECT_TRUE(at::allclose(b.detach(), tb.detach(), 1e-5, 1e-6)) << (b.detach() - tb.detach()).abs().max();
  EXPECT_FALSE(at::allclose(a.detach(), a0, 1e-2, 1e-2));
}

TEST(Optimizers, AdamWFollowsLibTorch) {
  expect_as_torch<torch::optim::AdamWOptions>(kinds()[0].make, torch::optim::AdamWOptions{0.02}.weight_decay(0.1),
                                              ParamGroup{.params = {}, .lr = 0.1, .weight_decay = 0, .beta1 = 0.5, .beta2 = 0.9},
                                              [](auto& o) { o.lr(0.1).weight_decay(0).betas({0.5, 0.9}); });
}

TEST(Optimizers, AdamFollowsLibTorch) {
  expect_as_torch<torch::optim::AdamOptions>(kinds()[1].make, torch::optim::AdamOptions{0.02}.weight_decay(0.1),
                                             ParamGroup{.params = {}, .lr = 0.1, .weight_decay = 0.01}, [](auto& o) { o.lr(0.1).weight_decay(0.01); });
}

TEST(Optimizers, SgdFollowsLibTorch) {
  using Theirs = torch::optim::SGDOptions;
  const auto two = ParamGroup{.params = {}, .lr = 0.2, .weight_decay = 0.02};
  const auto settings = [](Theirs& o) { o.lr(0.2).weight_decay(0.02); };
  expect_as_torch<Theirs>(kinds()[2].make, Theirs{0.05}.weight_decay(0.1), two, settings);
  expect_as_torch<Theirs>(kinds()[3].make, Theirs{0.05}.weight_decay(0.1).momentum(0.9).dampening(0.3), two, settings);
  expect_as_torch<Theirs>(kinds()[4].make, Theirs{0.05}.momentum(0.9).nesterov(true), two, settings);
  expect_as_torch<Theirs>(kinds()[3].make, Theirs{0.05}.weight_decay(0.1).momentum(0.9).dampening(0.3), ParamGroup{.params = {}, .momentum = 0},
                          [](Theirs& o) { o.momentum(0); });
}

TEST(Optimizers, AdagradFollowsLibTorch) {
  const auto theirs = torch::optim::AdagradOptions{0.05}.lr_decay(0.1).weight_decay(0.1).initial_accumulator_value(0.25);
  expect_as_torch<torch::optim::AdagradOptions>(kinds()[5].make, theirs, ParamGroup{.params = {}, .lr = 0.3}, [](auto& o) { o.lr(0.3); });
}

TEST(Optimizers, LionFollowsItsPaper) {  // arXiv 2302.06675, algorithm 2, in fp64
  const auto w0 = at::randn({257}, at::kDouble);
  const auto param = leaf(w0);
  Lion lion{std::vector<at::Tensor>{param}, {.lr = 0.01, .beta1 = 0.8, .beta2 = 0.95, .weight_decay = 0.1}};
  auto w = w0.clone(), m = at::zeros({257}, at::kDouble);
  for (int i = 0; i < 20; ++i) {
    const auto g = at::randn({257}, at::kDouble);
    param.mutable_grad() = g;
    lion.step();
    w = w - 0.01 * (at::sign(0.8 * m + 0.2 * g) + 0.1 * w);
    m = 0.95 * m + 0.05 * g;
  }
  EXPECT_TRUE(at::allclose(param.detach(), w, 1e-12, 1e-12));
}

struct EachKind : testing::TestWithParam<Kind> {
  void SetUp() override { at::set_num_threads(1); }
  void TearDown() override { at::set_num_threads(threads); }
  int threads = at::get_num_threads();
};
INSTANTIATE_TEST_SUITE_P(Kinds, EachKind, testing::ValuesIn(kinds()), [](const auto& instance) { return instance.param.name; });

/// One tensor, and the same cut into pieces that lie apart or side by side, must train to the same bits.
TEST_P(EachKind, GivesTheSameBitsHoweverParametersAreCut) {
  const std::vector<std::int64_t> sizes{0, 1, 17, 5, 1000, 0, 33, 40'000, 3};
  const std::int64_t total = 41'059;
  const auto start = at::randn({total});
  const auto whole = leaf(start);
  auto flat = start.clone(), flat_grad = at::zeros({total});
  std::vector<at::Tensor> beside, apart;
  std::int64_t at = 0;
  for (const auto n : sizes) {
    beside.push_back(flat.narrow(0, at, n).detach().requires_grad_(true));
    beside.back().mutable_grad() = flat_grad.narrow(0, at, n);
    apart.push_back(leaf(start.narrow(0, at, n)));
    at += n;
  }
  ASSERT_EQ(at, total);
  const auto one = GetParam().make({{.params = {whole}}}), two = GetParam().make({{.params = beside}}), three = GetParam().make({{.params = apart}});
  for (int i = 0; i < 5; ++i) {
    const auto grad = at::randn({total});
    whole.mutable_grad() = grad;
    flat_grad.copy_(grad);
    at = 0;
    for (std::size_t p = 0; p < sizes.size(); ++p) {
      apart[p].mutable_grad() = grad.narrow(0, at, sizes[p]).clone();
      at += sizes[p];
    }
    for (auto* optimizer : {one.get(), two.get(), three.get()}) optimizer->step();
  }
  EXPECT_TRUE(at::equal(whole.detach(), flat));
  std::vector<at::Tensor> ends;
  for (const auto& piece : apart) ends.push_back(piece.detach());
  EXPECT_TRUE(at::equal(whole.detach(), at::cat(ends)));
}

TEST_P(EachKind, GivesTheSameBitsOnAnyNumberOfThreads) {
  const auto start = at::randn({200'003}), grad = at::randn({200'003});
  std::vector<at::Tensor> ends;
  for (const int n : {1, 2}) {
    at::set_num_threads(n);
    const auto param = leaf(start);
    const auto optimizer = GetParam().make({{.params = {param}}});
    for (int i = 0; i < 3; ++i) {
      param.mutable_grad() = grad;
      optimizer->step();
    }
    ends.push_back(param.detach());
  }
  EXPECT_TRUE(at::equal(ends[0], ends[1]));
}

TEST_P(EachKind, ContinuesBitForBitFromStateByIndexOrName) {
  for (const auto keys : {StateKeys::Index, StateKeys::Name}) {
    const auto start = at::randn({7, 9});
    auto a = leaf(start), late = leaf(start), b = at::Tensor{}, late_b = at::Tensor{};
    const auto one = GetParam().make({{.params = {late, a}}});
    one->set_names({"late", "encoder.weight"});
    const auto grads = at::randn({6, 7, 9});
    const auto run = [&](Optimizer& optimizer, at::Tensor& p, at::Tensor& q, int from, int to) {
      for (int i = from; i < to; ++i) {
        p.mutable_grad() = grads[i].clone();
        if (i > 0) q.mutable_grad() = grads[i].clone();  // its first update comes later
        optimizer.step();
      }
    };
    run(*one, a, late, 0, 3);
    b = leaf(a);
    late_b = leaf(late);
    const auto two = GetParam().make({{.params = {late_b, b}}});
    two->set_names({"late", "encoder.weight"});
    two->load_state(one->state(keys), keys);
    run(*one, a, late, 3, 6);
    run(*two, b, late_b, 3, 6);
    EXPECT_TRUE(at::equal(a.detach(), b.detach()));
    EXPECT_TRUE(at::equal(late.detach(), late_b.detach()));
  }
}

TEST_P(EachKind, UpdatesTensorsThatAreNotRowMajor) {
  const auto start = at::randn({6, 10});
  const auto row = leaf(start);
  const auto column = start.t().clone(at::MemoryFormat::Contiguous).t().detach().requires_grad_(true);
  const auto one = GetParam().make({{.params = {row}}}), two = GetParam().make({{.params = {column}}});
  for (int i = 0; i < 3; ++i) {
    row.mutable_grad() = at::randn({6, 10});
    column.mutable_grad() = row.grad().clone();
    one->step();
    two->step();
  }
  EXPECT_TRUE(at::equal(row.detach(), column.detach()));
  const auto expected = one->state(), found = two->state();
  for (std::size_t i = 0; i < expected.size(); ++i) EXPECT_TRUE(at::equal(expected[i].second, found[i].second)) << expected[i].first;
}

TEST_P(EachKind, ComputesSixteenBitFloatsInFp32) {
  for (const auto dtype : {at::kBFloat16, at::kHalf}) {
    const auto start = at::randn({100}).to(dtype), grad = at::randn({100}).to(dtype);
    const auto small = leaf(start), full = leaf(start.to(at::kFloat));
    const auto one = GetParam().make({{.params = {small}}}), two = GetParam().make({{.params = {full}}});
    small.mutable_grad() = grad;
    full.mutable_grad() = grad.to(at::kFloat);
    one->step();
    two->step();
    EXPECT_TRUE(at::equal(small.detach(), full.detach().to(dtype)));
  }
}

/// This file is compiled for processors without fused multiply-add, so this loop rounds every operation.
TEST(Optimizers, RoundEveryOperationOnAnyProcessor) {
  const auto start = at::randn({1003}), first = at::randn({1003}), second = at::randn({1003});
  const auto param = leaf(start);
  SGD sgd{std::vector<at::Tensor>{param}, {.lr = 0.03, .momentum = 0.9, .weight_decay = 0.1}};
  for (const auto& grad : {first, second}) {
    param.mutable_grad() = grad;
    sgd.step();
  }
  for (std::int64_t i = 0; i < 1003; ++i) {
    float w = start.const_data_ptr<float>()[i];
    float speed = first.const_data_ptr<float>()[i] + 0.1F * w;
    w = w - 0.03F * speed;
    speed = 0.9F * speed + (second.const_data_ptr<float>()[i] + 0.1F * w);
    w = w - 0.03F * speed;
    ASSERT_EQ(w, param.const_data_ptr<float>()[i]) << i;
  }
}

TEST(Optimizers, RefuseGradientsTheyCannotUse) {
  const auto param = leaf(at::randn({4, 2}));
  AdamW optimizer{std::vector<at::Tensor>{param}, {}};
  param.mutable_grad() = at::randn({4, 2}).to_sparse();
  EXPECT_THROW(optimizer.step(), Failure);
  const auto integers = at::full({2}, 1, at::kLong);
  AdamW of_integers{std::vector<at::Tensor>{integers}, {}};
  EXPECT_NO_THROW(of_integers.step());  // never has a gradient
}

TEST(Optimizers, RefuseNamesThatAreTooFewOrRepeated) {
  Adam optimizer{{leaf(at::randn({2})), leaf(at::randn({2}))}, {}};
  EXPECT_THROW(optimizer.set_names({"a"}), Failure);
  EXPECT_THROW(optimizer.set_names({"a", "a"}), Failure);
  optimizer.handles()[0].mutable_grad() = at::randn({2});
  optimizer.step();
  EXPECT_THROW((void)optimizer.state(StateKeys::Name), Failure);
  optimizer.set_names({"a", "b"});
  EXPECT_EQ(optimizer.state(StateKeys::Name)[0].first, "exp_avg.a");
}

TEST(Optimizers, RefuseSettingsOutOfRange) {
  const std::vector<at::Tensor> params{leaf(at::randn({2}))};
  EXPECT_THROW((Adam{params, {.beta2 = 1}}), Failure);
  EXPECT_THROW((SGD{params, {.momentum = -1}}), Failure);
  EXPECT_THROW((SGD{params, {.nesterov = true}}), Failure);
  EXPECT_THROW((Adagrad{params, {.eps = -1}}), Failure);
  EXPECT_THROW((Lion{params, {.beta1 = 1}}), Failure);
  EXPECT_THROW((AdamW{std::vector<ParamGroup>{{.params = params, .beta1 = 1.5}}, {}}), Failure);
}

/// One update of the same elements by the kernels and by LibTorch's operations.
template <class Step, class Kernel>
void expect_same_update(Kernel kernel, const Step& step, int num_slots, bool root = false) {
  for (const auto type : {at::kFloat, at::kDouble, at::kBFloat16, at::kHalf}) {
    std::vector<at::Tensor> ours, theirs;
    for (int i = 0; i < 4; ++i) {
      auto values = at::randn({1003}).to(type);
      if (i >= 2) values = values.abs();  // state
      ours.push_back(values);
      theirs.push_back(values.clone());
    }
    const auto elements = [&](const std::vector<at::Tensor>& t) {
      return detail::Elements{.dtype = type, .count = 1003, .param = t[0].data_ptr(), .grad = t[1].data_ptr(),
                              .state = {num_slots > 0 ? t[2].data_ptr() : nullptr, num_slots > 1 ? t[3].data_ptr() : nullptr}};
    };
    kernel(elements(ours), step);
    detail::by_operations(elements(theirs), step);
    for (std::size_t i = 0; i < ours.size(); ++i) {
      if (root && i == 0 && (type == at::kFloat || type == at::kDouble)) {
        // LibTorch's sqrt on the CPU is not rounded correctly (one float in six differs from std::sqrt's): a bit or two.
        const double ulps = type == at::kFloat ? 4 * 0x1p-23 : 4 * 0x1p-52;
        EXPECT_TRUE(at::allclose(ours[i], theirs[i], ulps, ulps)) << type;
      } else {
        EXPECT_TRUE(at::equal(ours[i], theirs[i])) << type << " " << i;
      }
    }
  }
}

TEST(DeviceKernels, GiveTheBitsOfTheHostsButForTheRoot) {
  const detail::AdamStep adam{.l2 = 0.1, .keep = 0.99, .beta1 = 0.9, .beta2 = 0.999, .step_size = 0.02, .inverse_root = 3.1, .eps = 1e-8};
  expect_same_update([](const auto& e, const auto& s) { detail::adam(e, s); }, adam, 2, true);
  for (const bool nesterov : {false, true}) {
    const detail::SgdStep sgd{.l2 = 0.1, .momentum = 0.9, .fresh = 0.7, .nesterov_momentum = 0.9, .lr = 0.02, .nesterov = nesterov};
    expect_same_update([](const auto& e, const auto& s) { detail::sgd(e, s); }, sgd, nesterov ? 1 : 0);
    expect_same_update([](const auto& e, const auto& s) { detail::sgd(e, s); }, sgd, 1);
  }
  expect_same_update([](const auto& e, const auto& s) { detail::adagrad(e, s); }, detail::AdagradStep{.l2 = 0.1, .lr = 0.02, .eps = 1e-8}, 1, true);
  expect_same_update([](const auto& e, const auto& s) { detail::lion(e, s); }, detail::LionStep{.keep = 0.99, .beta1 = 0.9, .beta2 = 0.99, .lr = 0.02}, 1);
}

}  // namespace
}  // namespace troupe
