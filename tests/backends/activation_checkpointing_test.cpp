#include "checkpoint_units.hpp"

#include <troupe/activation_checkpointing.hpp>
#include <troupe/data/tensor_dict.hpp>
#include <troupe/errors.hpp>

#include <ATen/autocast_mode.h>
#include <ATen/ops/embedding.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/tensor.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <optional>
#include <tuple>

namespace troupe {
namespace {

using test::Block;
using test::drop;
using test::Stack;
using test::step_of;

std::string failure_of(const auto& action) {
  try {
    action();
  } catch (const Failure& failure) {
    return std::string(name(failure.code())) + ": " + failure.what();
  }
  return "nothing";
}

at::Tensor input(std::int64_t width = 8) { return at::randn({5, width}, rank_generator()).requires_grad_(); }

TEST(ActivationCheckpointing, GivesTheSameBitsWithDropout) {
  Stack stack{3};
  const auto x = input();
  const auto loss = [&] { return stack(x).square().sum(); };
  const auto plain = step_of(*stack, {x}, loss);
  EXPECT_EQ(stack->blocks[0]->forwards, 1);
  for (const bool offload : {false, true}) {
    EXPECT_EQ(set_activation_checkpointing(*stack, true, offload), 3);
    EXPECT_TRUE(step_of(*stack, {x}, loss) == plain) << offload;
  }
  EXPECT_EQ(stack->blocks[0]->forwards, 5);
  set_activation_checkpointing(*stack, false);
  EXPECT_TRUE(step_of(*stack, {x}, loss) == plain);
  EXPECT_EQ(stack->blocks[0]->forwards, 6);
}

TEST(ActivationCheckpointing, WorksOnUnitsInUnits) {
  Stack stack{2};
  const auto x = input();
  const auto loss = [&] { return stack(x).square().sum(); };
  const auto plain = step_of(*stack, {x}, loss);
  stack->set_activation_checkpointing(true);
  EXPECT_TRUE(step_of(*stack, {x}, loss) == plain);
  set_activation_checkpointing(*stack, true);  // the blocks in it too
  EXPECT_TRUE(step_of(*stack, {x}, loss) == plain);
  EXPECT_EQ(stack->blocks[0]->forwards, 1 + 2 + 3);
}

TEST(ActivationCheckpointing, WorksWhenAUnitIsUsedTwice) {
  Block block;
  const auto x = input();
  const auto loss = [&] { return block(block(x)).square().sum(); };
  const auto plain = step_of(*block, {x}, loss);
  block->set_activation_checkpointing(true);
  EXPECT_TRUE(step_of(*block, {x}, loss) == plain);
}

struct Parts {
  at::Tensor main;
  std::optional<at::Tensor> extra;
  int count = 0;
  auto tensors() { return std::tie(main, extra); }
};

struct ManyImpl : Unit {
  ManyImpl() : weight(register_parameter("weight", at::randn({8, 8}, rank_generator()))) {}
  auto forward(const std::vector<at::Tensor>& xs, const std::optional<at::Tensor>& maybe, const Batch& batch, double scale, std::string) {
    auto y = drop(at::linear(xs.at(0) * xs.at(1), weight), 0.2) * scale;
    if (maybe) y = y + *maybe;
    const auto z = y * batch["b"];
    return std::tuple{y, std::vector<at::Tensor>{z, y.argmax(1)}, Parts{z.sum(1), y.exp(), 7}, 3, at::Tensor{}};
  }
  at::Tensor weight;
};
TROUPE_UNIT(Many);

TEST(ActivationCheckpointing, TakesAndGivesTensorsInContainersAndStructs) {
  Many many;
  const auto a = input(), b = input(), c = input(), d = input();
  const auto loss = [&] {
    const auto [y, list, parts, number, nothing] = many(std::vector{a, b}, std::optional{c}, Batch{{"b", d}, {"ids", at::ones({2}, at::kLong)}}, 0.5, "text");
    EXPECT_EQ(list[1].scalar_type(), at::kLong);
    EXPECT_FALSE(list[1].requires_grad());
    EXPECT_EQ(parts.count, 7);
    EXPECT_EQ(number, 3);
    EXPECT_FALSE(nothing.defined());
    return y.square().sum() + parts.main.sum();  // list[0] and parts.extra are not used
  };
  const auto plain = step_of(*many, {a, b, c, d}, loss);
  many->set_activation_checkpointing(true);
  EXPECT_TRUE(step_of(*many, {a, b, c, d}, loss) == plain);
}

struct WordsImpl : Unit {
  WordsImpl() : Unit("Words"), table(register_parameter("table", at::randn({10, 4}, rank_generator()))) {}
  at::Tensor forward(const at::Tensor& ids) { return drop(at::embedding(table, ids), 0.5); }
  at::Tensor table;
};
TROUPE_UNIT(Words);

TEST(ActivationCheckpointing, TrainsAUnitWhoseInputsNeedNoGradient) {
  Words words;
  const auto ids = at::tensor({1, 5, 5, 9}, at::kLong);
  const auto loss = [&] { return words(ids).square().sum(); };
  const auto plain = step_of(*words, {}, loss);
  words->set_activation_checkpointing(true, true);
  EXPECT_TRUE(step_of(*words, {}, loss) == plain);
  words->table.requires_grad_(false);
  EXPECT_FALSE(words(ids).requires_grad());  // nothing to train: nothing to run again
}

TEST(ActivationCheckpointing, GivesTheSameBitsUnderAutocast) {
  Stack stack{2};
  const auto x = input();
  const auto loss = [&] {
    at::autocast::set_autocast_enabled(at::kCPU, true);
    at::autocast::set_autocast_dtype(at::kCPU, at::kBFloat16);
    const auto y = stack(x);
    const auto weight = at::linear(y, stack->blocks[0]->first);  // a cached cast without a graph would lose its gradient
    at::autocast::set_autocast_enabled(at::kCPU, false);
    EXPECT_EQ(weight.scalar_type(), at::kBFloat16);
    return y.square().sum() + weight.to(at::kFloat).sum();
  };
  const auto plain = step_of(*stack, {x}, loss);
  at::autocast::clear_cache();
  set_activation_checkpointing(*stack, true);
  const auto again = step_of(*stack, {x}, loss);
  at::autocast::clear_cache();
  EXPECT_TRUE(again.values[0].equal(plain.values[0]));
  for (const std::size_t i : {2U, 3U, 4U, 5U}) EXPECT_TRUE(again.values[i].equal(plain.values[i])) << i;
  // Used in two places: cast once and summed in bf16, or cast twice and summed in fp32.
  EXPECT_LT((again.values[1] - plain.values[1]).abs().max().item<double>(), 0.02 * plain.values[1].abs().max().item<double>());
  EXPECT_FALSE(at::autocast::is_autocast_enabled(at::kCPU));
  EXPECT_TRUE(at::autocast::is_autocast_cache_enabled());
}

TEST(ActivationCheckpointing, LeavesNoCastsOfWeightsToAutocast) {
  const auto weight = input(), x = input();
  const auto f = [&weight](const at::Tensor& t) { return at::linear(t, weight); };
  const auto under_autocast = [](const auto& action) {
    at::autocast::set_autocast_dtype(at::kCPU, at::kBFloat16);
    at::autocast::set_autocast_enabled(at::kCPU, true);
    const auto result = action();
    at::autocast::set_autocast_enabled(at::kCPU, false);
    return result;
  };
  const auto loss = under_autocast([&] {
    const auto first = checkpoint(f, x);
    EXPECT_TRUE(f(x.detach()).requires_grad());  // a cast made without a graph would have none
    return first.sum();
  });
  at::autocast::clear_cache();
  loss.backward();
  {
    const at::NoGradGuard no_grad;
    weight.zero_();  // a step of the optimizer
  }
  EXPECT_EQ(under_autocast([&] { return f(x); }).abs().max().item<double>(), 0);
  at::autocast::clear_cache();
}

TEST(ActivationCheckpointing, LeavesEvaluationAlone) {
  Block block;
  block->set_activation_checkpointing(true);
  const auto x = input();
  const at::NoGradGuard no_grad;
  EXPECT_FALSE(block(x).requires_grad());
  EXPECT_EQ(block->forwards, 1);
}

TEST(ActivationCheckpointing, PassesOnWhatForwardThrows) {
  Block block;
  const auto x = input();
  const auto loss = [&] { return block(x).square().sum(); };
  const auto plain = step_of(*block, {x}, loss);
  block->set_activation_checkpointing(true);
  block->before = [] { throw std::out_of_range("planted"); };
  EXPECT_THROW((void)block(x), std::out_of_range);
  EXPECT_TRUE(c10::GradMode::is_enabled());
  block->before = nullptr;
  const auto value = loss();
  block->before = [] { throw std::out_of_range("planted"); };
  const auto random = rank_generator().get_state();
  EXPECT_THROW(value.backward(), std::out_of_range);
  EXPECT_TRUE(rank_generator().get_state().equal(random));
  EXPECT_TRUE(c10::GradMode::is_enabled());
  block->before = nullptr;
  EXPECT_TRUE(step_of(*block, {x}, loss) == plain);
}

TEST(ActivationCheckpointing, SeesThatForwardIsAnotherFunctionInBackward) {
  Block block;
  block->set_activation_checkpointing(true);
  const auto x = input();
  auto loss = block(x).sum();
  block->eval();
  EXPECT_NE(failure_of([&] { loss.backward(); }).find("InvalidArgument: activation checkpointing: unit Block was switched"), std::string::npos);
  int rows = 5;
  loss = checkpoint([&rows](const at::Tensor& t) { return t.narrow(0, 0, rows).exp(); }, x).sum();
  rows = 3;
  EXPECT_NE(failure_of([&] { loss.backward(); }).find("output 0 was Float[5, 8] in forward, but is Float[3, 8]"), std::string::npos)
      << failure_of([&] { loss.backward(); });
}

TEST(ActivationCheckpointing, RefusesWhatItCannotDifferentiate) {
  Block block;
  block->set_activation_checkpointing(true);
  const auto x = input();
  EXPECT_NE(failure_of([&] { (void)torch::autograd::grad({block(x).sum()}, {x}); }).find("Unsupported"), std::string::npos);
  EXPECT_NE(failure_of([&] { torch::autograd::backward({block(x).sum()}, {}, true, true); }).find("Unsupported"), std::string::npos);
  const auto loss = block(x).sum();
  loss.backward({}, /*retain_graph=*/true);
  const auto once = x.grad().clone();
  loss.backward();
  EXPECT_TRUE(x.grad().equal(once * 2));
  EXPECT_NE(failure_of([&] { loss.backward(); }).find("InvalidArgument"), std::string::npos);
}

TEST(ActivationCheckpointing, SeesInputsChangedInPlaceUnlessTheyAreOffloaded) {
  Block block;
  const auto x = input();
  auto inner = x * 1;
  set_seed(1);
  block(inner).sum().backward();
  const auto expected = block->first.grad().clone();
  for (const bool offload : {false, true}) {
    block->zero_grad();
    block->set_activation_checkpointing(true, offload);
    inner = x * 1;
    set_seed(1);
    const auto loss = block(inner).sum();
    {
      const at::NoGradGuard no_grad;
      inner.fill_(3);
    }
    if (offload) {
      loss.backward();
      EXPECT_TRUE(block->first.grad().equal(expected));
    } else {
      EXPECT_ANY_THROW(loss.backward());
    }
  }
}

TEST(ActivationCheckpointing, TakesAnyFunction) {
  torch::nn::Module none;
  const auto x = input(), y = input();
  const auto f = [](const at::Tensor& a, const at::Tensor& b, const at::Tensor& c) { return std::pair{a, a * b + drop(c, 0.5)}; };
  const auto plain = step_of(none, {x, y}, [&] {
    const auto [same, sum] = f(x, y, x);
    return (same * sum).sum();
  });
  const auto again = step_of(none, {x, y}, [&] {
    const auto [same, sum] = checkpoint(f, x, y, x);
    EXPECT_FALSE(same.is_same(x));  // the input's own history stays as it is
    return (same * sum).sum();
  });
  EXPECT_TRUE(x.is_leaf());
  EXPECT_TRUE(again == plain);
}

/// As the sharding engine does: parameters are there from pre_forward to post_forward, and again from the first
/// gradient of an output on.
struct Takes : UnitHooks {
  Takes(Block& unit, std::vector<std::string>& events) : block(unit), log(events) { take(); }
  at::Tensor on_input(const at::Tensor& input) override { return input; }
  void pre_forward() override {
    log.emplace_back("pre_forward");
    give();
  }
  void on_output(const at::Tensor& output) override {
    log.emplace_back("on_output");
    output.register_hook([this](const at::Tensor&) {
      log.emplace_back("pre_backward");
      give();
    });
  }
  void post_forward() override {
    log.emplace_back("post_forward");
    take();
  }
  void take() {
    for (auto& parameter : block->parameters()) {
      data.push_back(parameter.detach());
      parameter.set_data(at::empty_like(parameter).resize_({0}));
    }
  }
  void give() {
    std::size_t i = 0;
    for (auto& parameter : block->parameters()) parameter.set_data(data[i++]);
    data.clear();
  }
  Block& block;
  std::vector<std::string>& log;
  std::vector<at::Tensor> data;
};

TEST(ActivationCheckpointing, RunsBetweenTheHooksOfTheEngine) {
  Block block;
  const auto x = input();
  const auto loss = [&] { return block(x).square().sum(); };
  auto plain = step_of(*block, {x}, loss);
  std::vector<std::string> log;
  block->set_activation_checkpointing(true);
  block->set_unit_hooks(std::make_shared<Takes>(block, log));
  block->before = [&log] { log.emplace_back("forward"); };
  EXPECT_TRUE(step_of(*block, {x}, loss) == plain);
  EXPECT_EQ(log, (std::vector<std::string>{"pre_forward", "forward", "on_output", "post_forward", "pre_backward", "forward"}));
}

struct ViewImpl : Unit {
  at::Tensor forward(at::ArrayRef<at::Tensor> list) { return list[0] * 2; }
};
TROUPE_UNIT(View);

TEST(ActivationCheckpointing, RefusesArgumentsThatOwnNothing) {
  View view;
  const std::vector<at::Tensor> list{input()};
  EXPECT_TRUE(view(at::ArrayRef<at::Tensor>{list}).requires_grad());
  view->set_activation_checkpointing(true);
  EXPECT_NE(failure_of([&] { (void)view(at::ArrayRef<at::Tensor>{list}); }).find("Unsupported"), std::string::npos);
}

}  // namespace
}  // namespace troupe
