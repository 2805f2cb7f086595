#include "fake_context.hpp"
#include "small_net.hpp"

#include <troupe/accelerator.hpp>

#include <ATen/ops/allclose.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/full.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/randn.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <mutex>

// The engine's plan is private to backends/.
#include "../../backends/ddp.hpp"

namespace troupe {
namespace {

using test::run_ranks;
using test::SmallNet;
using test::SmallNetImpl;
using testing::HasSubstr;

constexpr int num_rows = 12;

at::Tensor inputs() {
  set_seed(7);
  return at::randn({num_rows, 6}, rank_generator());
}
at::Tensor targets() {
  set_seed(8);
  return at::randn({num_rows, 3}, rank_generator());
}

/// A rank's share of the rows.
at::Tensor share(const at::Tensor& rows, const TrainContext& context) {
  const auto n = num_rows / context.world_size();
  return rows.narrow(0, n * context.world_rank(), n);
}

SmallNet make_net(std::int64_t width = 8) {
  set_seed(3);
  return std::make_shared<SmallNetImpl>(width);
}

std::vector<at::Tensor> gradients(torch::nn::Module& module) {
  std::vector<at::Tensor> grads;
  for (auto& p : module.parameters()) grads.push_back(p.grad().defined() ? p.grad().clone() : at::Tensor{});
  return grads;
}

std::vector<at::Tensor> single_process_gradients(std::int64_t width = 8) {
  auto net = make_net(width);
  at::mse_loss(net->forward(inputs()), targets()).backward();
  return gradients(*net);
}

void expect_close(const std::vector<at::Tensor>& a, const std::vector<at::Tensor>& b) {
  ASSERT_EQ(a.size(), b.size());
  // Relative L2: single elements of long sums cancel to rounding noise.
  for (std::size_t i = 0; i < a.size(); ++i) {
    EXPECT_LT((a[i] - b[i]).norm().item<double>(), 2e-6 * b[i].norm().item<double>()) << "parameter " << i;
  }
}

struct DdpRanks : testing::TestWithParam<int> {};

TEST_P(DdpRanks, GradientsEqualThoseOfOneProcess) {
  const auto expected = single_process_gradients();
  run_ranks(GetParam(), [&](TrainContext& context) {
    Accelerator accelerator{context};
    auto net = make_net();
    accelerator.prepare(net);
    for (int repeat = 0; repeat < 3; ++repeat) {
      for (auto& p : net->parameters()) p.mutable_grad().reset();
      accelerator.backward(at::mse_loss(net->forward(share(inputs(), context)), share(targets(), context)));
      expect_close(gradients(*net), expected);
    }
  });
}

TEST_P(DdpRanks, GradientsInManyBucketsAndLargeOnesInPlaceEqualThoseOfOneProcess) {
  constexpr std::int64_t width = 60'000;  // 1.4 MB of first.weight: reduced where it lies
  const auto expected = single_process_gradients(width);
  run_ranks(GetParam(), [&](TrainContext& context) {
    Accelerator accelerator{context, {.ddp = {.bucket_cap_mb = 1e-4}}};
    auto net = make_net(width);
    accelerator.prepare(net);
    accelerator.backward(at::mse_loss(net->forward(share(inputs(), context)), share(targets(), context)));
    expect_close(gradients(*net), expected);
  });
}

TEST_P(DdpRanks, RanksStayBitwiseEqual) {
  std::mutex mutex;
  std::vector<std::vector<at::Tensor>> weights;
  run_ranks(GetParam(), [&](TrainContext& context) {
    Accelerator accelerator{context};
    auto net = make_net();
    AdamW optimizer{net->parameters(), {.lr = 0.05}};
    accelerator.prepare(net, optimizer);
    for (int step = 0; step < 5; ++step) {
      accelerator.backward(at::mse_loss(net->forward(share(inputs(), context)), share(targets(), context)));
      optimizer.step();
      optimizer.zero_grad();
    }
    const std::scoped_lock lock{mutex};
    weights.push_back(net->parameters());
  });
  for (const auto& other : weights) {
    for (std::size_t i = 0; i < other.size(); ++i) EXPECT_TRUE(at::equal(other[i], weights[0][i]));
  }
}

TEST_P(DdpRanks, NoSyncThenSyncEqualsOneBackwardOverBoth) {
  run_ranks(GetParam(), [&](TrainContext& context) {
    const auto x = share(inputs(), context);
    const auto y = share(targets(), context);
    Accelerator accelerator{context};
    auto net = make_net();
    accelerator.prepare(net);
    const auto half = x.size(0) / 2;
    {
      const auto local = accelerator.no_sync();
      accelerator.backward(at::mse_loss(net->forward(x.narrow(0, 0, half)), y.narrow(0, 0, half)) * 0.5);
    }
    accelerator.backward(at::mse_loss(net->forward(x.narrow(0, half, half)), y.narrow(0, half, half)) * 0.5);
    expect_close(gradients(*net), single_process_gradients());
  });
}

TEST_P(DdpRanks, StartFromRankZerosWeights) {
  run_ranks(GetParam(), [&](TrainContext& context) {
    Accelerator accelerator{context};
    set_seed(3, true, context.world_rank());
    auto net = std::make_shared<SmallNetImpl>();
    accelerator.prepare(net);
    const auto reference = make_net();
    for (std::size_t i = 0; i < net->parameters().size(); ++i) EXPECT_TRUE(at::equal(net->parameters()[i], reference->parameters()[i]));
  });
}

INSTANTIATE_TEST_SUITE_P(Worlds, DdpRanks, testing::Values(1, 2, 3), testing::PrintToStringParamName());

TEST(Ddp, KeepsGradientsLocalInsideNoSync) {
  run_ranks(2, [&](TrainContext& context) {
    Accelerator accelerator{context};
    auto net = make_net();
    accelerator.prepare(net);
    const auto local = accelerator.no_sync();
    accelerator.backward(net->forward(at::full({1, 6}, 1.0 + context.world_rank())).sum());
    auto alone = make_net();
    alone->forward(at::full({1, 6}, 1.0 + context.world_rank())).sum().backward();
    expect_close(gradients(*net), gradients(*alone));
  });
}

TEST(Ddp, NamesParametersWithoutGradient) {
  try {
    run_ranks(2, [&](TrainContext& context) {
      Accelerator accelerator{context};
      auto net = make_net();
      accelerator.prepare(net);
      accelerator.backward(net->forward(inputs(), false).sum());
    });
    FAIL() << "no failure";
  } catch (const Failure& failure) {
    EXPECT_THAT(failure.what(), HasSubstr("spare.weight, spare.bias"));
    EXPECT_THAT(failure.what(), HasSubstr("find_unused_parameters"));
  }
}

TEST(Ddp, AveragesAParameterThatOnlyOneRankUsed) {
  run_ranks(2, [&](TrainContext& context) {
    Accelerator accelerator{context, {.ddp = {.find_unused_parameters = true}}};
    auto net = make_net();
    accelerator.prepare(net);
    accelerator.backward(net->forward(at::ones({1, 6}), context.world_rank() == 1).sum());
    auto alone = make_net();
    alone->forward(at::ones({1, 6}), true).sum().backward();
    EXPECT_TRUE(at::allclose(net->spare->bias.grad(), alone->spare->bias.grad() / 2));
  });
}

TEST(Ddp, LeavesAParameterThatNobodyUsedWithoutGradient) {
  run_ranks(2, [&](TrainContext& context) {
    Accelerator accelerator{context, {.ddp = {.find_unused_parameters = true}}};
    auto net = make_net();
    accelerator.prepare(net);
    accelerator.backward(net->forward(at::ones({1, 6}), false).sum());
    EXPECT_FALSE(net->spare->weight.grad().defined());
    EXPECT_TRUE(net->first->weight.grad().defined());
  });
}

TEST(Ddp, NamesTheParameterAndRankThatDiffer) {
  try {
    run_ranks(3, [&](TrainContext& context) {
      Accelerator accelerator{context};
      auto net = make_net(context.world_rank() == 2 ? 9 : 8);
      accelerator.prepare(net);
    });
    FAIL() << "no failure";
  } catch (const Failure& failure) {
    EXPECT_EQ(failure.code(), Errc::CollectiveMismatch);
    EXPECT_THAT(failure.what(), HasSubstr("first.weight F32 [8, 6]"));
    EXPECT_THAT(failure.what(), HasSubstr("rank 2"));
  }
}

struct WithBuffer : torch::nn::Module {
  WithBuffer() : weight(register_parameter("weight", at::ones({2}))), seen(register_buffer("seen", at::full({}, 0.0))) {}
  at::Tensor weight, seen;
};

TEST(Ddp, GivesEveryRankRankZerosBuffers) {
  run_ranks(2, [&](TrainContext& context) {
    Accelerator accelerator{context};
    auto net = std::make_shared<WithBuffer>();
    accelerator.prepare(net);
    net->seen.fill_(10.0 + context.world_rank());
    accelerator.backward(net->weight.sum());
    EXPECT_EQ(net->seen.item<double>(), 10);
  });
}

TEST(Ddp, LeavesBuffersAloneWhenTold) {
  run_ranks(2, [&](TrainContext& context) {
    Accelerator accelerator{context, {.ddp = {.broadcast_buffers = false}}};
    auto net = std::make_shared<WithBuffer>();
    accelerator.prepare(net);
    net->seen.fill_(10.0 + context.world_rank());
    accelerator.backward(net->weight.sum());
    EXPECT_EQ(net->seen.item<double>(), 10 + context.world_rank());
  });
}

TEST(Ddp, ReducesGradientsThatShareOneStorageSeparately) {
  struct Pair : torch::nn::Module {
    Pair() : a(register_parameter("a", at::ones({300'000}))), b(register_parameter("b", at::ones({1, 300'000}))) {}
    at::Tensor a, b;
  };
  run_ranks(2, [&](TrainContext& context) {
    Accelerator accelerator{context};
    auto net = std::make_shared<Pair>();
    accelerator.prepare(net);
    const auto scale = at::full({300'000}, 2.0 + 2 * context.world_rank());
    accelerator.backward(((net->a.view({-1}) + net->b.view({-1})) * scale).sum());
    EXPECT_TRUE(at::equal(net->a.grad(), at::full({300'000}, 3.0)));
    EXPECT_TRUE(at::equal(net->b.grad(), at::full({1, 300'000}, 3.0)));
  });
}

TEST(Ddp, ADestroyedAcceleratorLeavesTheModelUsable) {
  auto net = make_net();
  run_ranks(1, [&](TrainContext& context) { Accelerator{context}.prepare(net); });
  run_ranks(2, [&](TrainContext& context) {
    auto mine = make_net();
    { Accelerator{context}.prepare(mine); }
    mine->forward(at::ones({1, 6})).sum().backward();
    EXPECT_TRUE(mine->first->weight.grad().defined());
  });
}

TEST(BucketPlan, WalksParametersBackwardsAndClosesTheFirstBucketEarly) {
  const auto tensor = [](std::int64_t kib) { return at::ones({kib * 256}); };
  const detail::NamedTensors params{{"a", tensor(900)}, {"b", tensor(900)}, {"c", tensor(900)}, {"d", tensor(900)}, {"e", tensor(10)}};
  const auto plan = detail::plan_buckets(params, 25 << 20, 0);
  ASSERT_EQ(plan.size(), 2u);
  EXPECT_EQ(plan[0].params, (std::vector<std::size_t>{4, 3, 2}));
  EXPECT_EQ(plan[1].params, (std::vector<std::size_t>{1, 0}));
}

TEST(BucketPlan, GivesLargeGradientsBucketsOfTheirOwnInOrderOfReadiness) {
  const detail::NamedTensors params{{"small0", at::ones({4})}, {"large1", at::ones({1 << 18})}, {"small2", at::ones({4})}, {"large3", at::ones({1 << 18})}};
  const auto plan = detail::plan_buckets(params, 25 << 20, 1 << 20);
  ASSERT_EQ(plan.size(), 3u);
  EXPECT_TRUE(plan[0].in_place);
  EXPECT_EQ(plan[0].params, (std::vector<std::size_t>{3}));
  EXPECT_EQ(plan[1].params, (std::vector<std::size_t>{1}));
  EXPECT_EQ(plan[2].params, (std::vector<std::size_t>{2, 0}));
}

TEST(BucketPlan, KeepsTypesApart) {
  const detail::NamedTensors params{{"a", at::ones({4}, at::kDouble)}, {"b", at::ones({4})}, {"c", at::ones({4}, at::kDouble)}};
  EXPECT_EQ(detail::plan_buckets(params, 25 << 20, 0).size(), 2u);
}

}  // namespace
}  // namespace troupe
