// What replicated training sends: rounded gradients, low-rank factors.
#include "counting_communicator.hpp"
#include "fake_context.hpp"
#include "small_net.hpp"

#include <troupe/accelerator.hpp>

#include <ATen/ops/equal.h>
#include <ATen/ops/eye.h>
#include <ATen/ops/full.h>
#include <ATen/ops/linalg_svdvals.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/mse_loss.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/outer.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/zeros.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <mutex>

// The reductions are private to backends/.
#include "../../backends/power_sgd.hpp"

namespace troupe {
namespace {

using test::CountingCommunicator;
using test::FakeContext;
using test::run_ranks;
using test::SmallNetImpl;

at::Tensor draw(std::uint64_t seed, at::IntArrayRef sizes) {
  set_seed(seed);
  return at::randn(sizes, rank_generator());
}

std::shared_ptr<SmallNetImpl> make_net(std::int64_t width = 64) {
  set_seed(3);
  return std::make_shared<SmallNetImpl>(width);
}

constexpr int num_steps = 6;

struct Outcomes {
  std::vector<std::vector<at::Tensor>> weights;  // of each rank
  std::size_t bytes_per_step = 0;
};

/// Trains under a hook; gradients of the first step in `gradients`.
Outcomes train(int ranks, const DistributedDataParallelKwargs& ddp, std::vector<at::Tensor>* gradients = nullptr) {
  Outcomes result;
  std::mutex mutex;
  run_ranks(ranks, [&](TrainContext& context) {
    CountingCommunicator counting{context.communicator()};
    FakeContext counted{counting};
    Accelerator accelerator{counted, {.ddp = ddp}};
    auto net = make_net();
    AdamW optimizer{net->parameters(), {.lr = 0.01}};
    accelerator.prepare(net, optimizer);
    const auto x = draw(20 + static_cast<std::uint64_t>(context.world_rank()), {8, 6});
    counting.all_reduced_bytes = 0;
    for (int step = 0; step < num_steps; ++step) {
      accelerator.backward(net->forward(x).square().mean());
      if (step == 0 && gradients && context.world_rank() == 0) {
        for (auto& p : net->parameters()) gradients->push_back(p.grad().clone());
      }
      optimizer.step();
      optimizer.zero_grad();
    }
    const std::scoped_lock lock{mutex};
    result.weights.push_back(net->parameters());
    result.bytes_per_step = counting.all_reduced_bytes / num_steps;
  });
  return result;
}

void expect_equal_ranks(const Outcomes& outcomes) {
  for (const auto& other : outcomes.weights) {
    for (std::size_t i = 0; i < other.size(); ++i) EXPECT_TRUE(at::equal(other[i], outcomes.weights[0][i])) << i;
  }
}

double relative_error(const std::vector<at::Tensor>& a, const std::vector<at::Tensor>& b) {
  double difference = 0, norm = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    difference += (a[i] - b[i]).square().sum().item<double>();
    norm += b[i].square().sum().item<double>();
  }
  return std::sqrt(difference / norm);
}

TEST(CommHook, RoundedGradientsHalveTheBytesAndLeaveRanksEqual) {
  for (const int ranks : {2, 3}) {
    std::vector<at::Tensor> plain, rounded;
    const auto whole = train(ranks, {}, &plain);
    for (const auto hook : {CommHook::BF16, CommHook::FP16}) {
      rounded.clear();
      const auto half = train(ranks, {.comm_hook = hook}, &rounded);
      EXPECT_EQ(half.bytes_per_step * 2, whole.bytes_per_step);
      expect_equal_ranks(half);
      const auto error = relative_error(rounded, plain);
      const double unit = hook == CommHook::BF16 ? 0x1p-9 : 0x1p-12;  // a rounding's largest error; there are two
      EXPECT_GT(error, unit / 8);
      EXPECT_LT(error, 2 * unit);
    }
  }
}

// A sum in bf16 would stay at 256.
TEST(CommHook, RoundedGradientsAreAddedInFp32) {
  run_ranks(3, [](TrainContext& context) {
    auto reduction = detail::make_all_reduce(context.communicator(), at::kBFloat16);
    auto gradient = at::full({4}, context.world_rank() == 0 ? 256.0 : 1.0, at::kFloat);
    reduction->start(gradient);
    reduction->proceed();
    reduction->finish();
    EXPECT_TRUE(at::equal(gradient, at::full({4}, 86.0)));
  });
}

TEST(CommHook, LargeGradientsThatAreReducedWhereTheyLieAreRoundedToo) {
  run_ranks(2, [](TrainContext& context) {
    CountingCommunicator counting{context.communicator()};
    FakeContext counted{counting};
    Accelerator accelerator{counted, {.ddp = {.comm_hook = CommHook::BF16}}};
    auto net = make_net(60'000);
    accelerator.prepare(net);
    counting.all_reduced_bytes = 0;
    accelerator.backward(net->forward(at::full({2, 6}, 1.0 + context.world_rank())).square().mean());
    std::int64_t numel = 0;
    for (const auto& p : net->parameters()) numel += p.numel();
    EXPECT_LT(counting.all_reduced_bytes, static_cast<std::size_t>(2 * numel + 4096));
    EXPECT_TRUE(net->first->weight.grad().sizes() == net->first->weight.sizes());
  });
}

CommStateOption full_rank() { return {.matrix_approximation_rank = 64, .start_powerSGD_iter = 0, .min_compression_rate = 1e-3}; }

TEST(PowerSgd, OfFullRankEqualsPlainReduction) {
  for (const auto hook : {CommHook::POWER_SGD, CommHook::BATCHED_POWER_SGD}) {
    for (const int ranks : {2, 3}) {
      std::vector<at::Tensor> plain, factored;
      train(ranks, {}, &plain);
      const auto outcomes = train(ranks, {.comm_hook = hook, .comm_state_option = full_rank()}, &factored);
      EXPECT_LT(relative_error(factored, plain), 1e-5);
      expect_equal_ranks(outcomes);
    }
  }
}

TEST(PowerSgd, SendsFactorsOnly) {
  const auto plain = train(2, {});
  const auto factored = train(2, {.comm_hook = CommHook::POWER_SGD, .comm_state_option = {.start_powerSGD_iter = 0}});
  const auto halved = train(2, {.comm_hook = CommHook::POWER_SGD, .comm_wrapper = CommWrapper::BF16, .comm_state_option = {.start_powerSGD_iter = 0}});
  // first [64, 6], second [3, 64] of rank 1; vectors, and spare [3, 3] (6 * 2 > 9), are sent whole.
  EXPECT_EQ(factored.bytes_per_step, 4u * (64 + 6 + 3 + 64 + 64 + 3 + 9 + 3));
  EXPECT_EQ(halved.bytes_per_step * 2, factored.bytes_per_step);
  EXPECT_LT(factored.bytes_per_step, plain.bytes_per_step / 2);
  expect_equal_ranks(factored);
  expect_equal_ranks(halved);
}

TEST(PowerSgd, BeginsAfterTheIterationsItWasTold) {
  std::vector<at::Tensor> plain, later;
  const auto whole = train(2, {}, &plain);
  const auto outcomes = train(2, {.comm_hook = CommHook::POWER_SGD, .comm_state_option = {.start_powerSGD_iter = num_steps}}, &later);
  EXPECT_EQ(outcomes.bytes_per_step, whole.bytes_per_step);
  for (std::size_t i = 0; i < plain.size(); ++i) EXPECT_TRUE(at::equal(later[i], plain[i])) << i;
}

/// Reduces the same gradient again and again.
struct Repeated {
  CommStateOption options;
  int repeats = 40;

  struct Errors {
    double of_mean = 0;  // the mean of what came out, against what went in
    double of_last = 0;
    double best = 0;  // of any matrix of that rank
  };
  Errors errors() const {
    Errors result;
    run_ranks(2, [&](TrainContext& context) {
      const auto own = draw(7 + static_cast<std::uint64_t>(context.world_rank()), {12, 10});
      const auto mean = (draw(7, {12, 10}) + draw(8, {12, 10})) / 2;
      detail::BucketShape shape;
      shape.segments = {{0, 120, 12, 2}};
      shape.numel = 120;
      DistributedDataParallelKwargs ddp;
      ddp.comm_hook = CommHook::POWER_SGD;
      ddp.comm_state_option = options;
      auto reduction = detail::make_reduction(context.communicator(), ddp, shape, 0);
      auto sum = at::zeros({12, 10});
      at::Tensor last;
      for (int i = 0; i < repeats; ++i) {
        last = own.clone();
        reduction->start(last);
        reduction->proceed();
        reduction->finish();
        sum += last;
      }
      if (context.world_rank() != 0) return;
      const auto error = [&](const at::Tensor& t) { return ((t - mean).norm() / mean.norm()).item<double>(); };
      const auto lost = at::linalg_svdvals(mean).narrow(0, options.matrix_approximation_rank, 10 - options.matrix_approximation_rank);
      result = {error(sum / repeats), error(last), (lost.norm() / mean.norm()).item<double>()};
    });
    return result;
  }
};

TEST(PowerSgd, ErrorFeedbackSendsLaterWhatWasLost) {
  const Repeated with{{.matrix_approximation_rank = 2, .start_powerSGD_iter = 0, .min_compression_rate = 1}};
  auto without = with;
  without.options.use_error_feedback = false;
  EXPECT_LT(with.errors().of_mean, 0.15);
  EXPECT_GT(without.errors().of_mean, 0.5);
}

TEST(PowerSgd, WarmStartFindsTheBestSubspace) {
  // Without error feedback, repeated steps are power iteration.
  const Repeated warm{{.matrix_approximation_rank = 2, .start_powerSGD_iter = 0, .min_compression_rate = 1, .use_error_feedback = false}, 200};
  auto cold = warm;
  cold.options.warm_start = false;
  const auto found = warm.errors();
  EXPECT_LT(found.of_last, 1.0001 * found.best);
  EXPECT_GT(cold.errors().of_last, 1.01 * found.best);
}

TEST(PowerSgd, ForgetsItsErrorAfterAGradientThatIsNotFinite) {
  run_ranks(2, [](TrainContext& context) {
    detail::BucketShape shape;
    shape.segments = {{0, 120, 12, 2}};
    shape.numel = 120;
    DistributedDataParallelKwargs ddp;
    ddp.comm_hook = CommHook::POWER_SGD;
    ddp.comm_state_option = {.start_powerSGD_iter = 0};
    auto reduction = detail::make_reduction(context.communicator(), ddp, shape, 0);
    const auto reduce = [&](at::Tensor gradient) {
      reduction->start(gradient);
      reduction->proceed();
      reduction->finish();
      return gradient;
    };
    auto bad = at::ones({12, 10});
    if (context.world_rank() == 1) bad[3][4] = INFINITY;
    EXPECT_FALSE(std::isfinite(reduce(bad).sum().item<double>()));
    const auto rank_one = at::outer(draw(1, {12}), draw(2, {10}));
    EXPECT_LT(((reduce(rank_one.clone()) - rank_one).norm() / rank_one.norm()).item<double>(), 1e-5);
  });
}

TEST(Orthogonalize, MakesColumnsOrthonormalAndReplacesDependentOnes) {
  set_seed(1);
  auto m = at::randn({20, 4}, rank_generator());
  m.select(1, 2).copy_(m.select(1, 0) * 3 - m.select(1, 1));
  auto zeroed = m.clone();
  EXPECT_TRUE(detail::orthogonalize(m, 0, &rank_generator()));
  EXPECT_LT((at::mm(m.t(), m) - at::eye(4)).abs().max().item<double>(), 1e-6);
  EXPECT_TRUE(detail::orthogonalize(zeroed, 0, nullptr));
  EXPECT_EQ(zeroed.select(1, 2).norm().item<double>(), 0);
  EXPECT_NEAR(zeroed.select(1, 3).norm().item<double>(), 1, 1e-6);
}

TEST(CommHook, RefusesSettingsWithoutEffectOrOutOfRange) {
  run_ranks(1, [](TrainContext& context) {
    const auto refused = [&](const DistributedDataParallelKwargs& ddp) {
      try {
        Accelerator accelerator{context, {.ddp = ddp}};
        return false;
      } catch (const Failure& failure) {
        return failure.code() == Errc::InvalidConfig;
      }
    };
    EXPECT_TRUE(refused({.comm_wrapper = CommWrapper::FP16}));
    EXPECT_TRUE(refused({.comm_hook = CommHook::FP16, .comm_wrapper = CommWrapper::BF16}));
    EXPECT_TRUE(refused({.comm_hook = CommHook::POWER_SGD, .comm_state_option = {.matrix_approximation_rank = 0}}));
    EXPECT_TRUE(refused({.comm_hook = CommHook::POWER_SGD, .comm_state_option = {.start_powerSGD_iter = -1}}));
    EXPECT_TRUE(refused({.comm_hook = CommHook::POWER_SGD, .comm_state_option = {.min_compression_rate = 0}}));
    EXPECT_FALSE(refused({.comm_hook = CommHook::POWER_SGD, .comm_wrapper = CommWrapper::BF16}));
  });
}

}  // namespace
}  // namespace troupe
