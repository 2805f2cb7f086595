// Inputs shared out, flags, functions of one process, local SGD, profiles.
#include "fake_context.hpp"
#include "small_net.hpp"

#include <troupe/accelerator.hpp>
#include <troupe/local_sgd.hpp>

#include <ATen/autocast_mode.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/full.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/randn.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <atomic>
#include <fstream>
#include <nlohmann/json.hpp>
#include <set>

namespace troupe {
namespace {

using test::run_ranks;
using test::SmallNetImpl;
using testing::HasSubstr;

struct One : torch::nn::Module {
  One() : w(register_parameter("w", at::ones({2}))) {}
  at::Tensor w;
};

// accelerate 1.15, three processes, five items: [0, 1], [2, 3], [4] and with padding [4, 4].
TEST(SplitBetweenProcesses, DealsListsTensorsAndMapsAlike) {
  run_ranks(3, [](TrainContext& context) {
    Accelerator accelerator{context};
    const std::vector<std::vector<std::int64_t>> plain{{0, 1}, {2, 3}, {4}}, padded{{0, 1}, {2, 3}, {4, 4}};
    const auto rank = static_cast<std::size_t>(context.world_rank());
    const std::vector<std::int64_t> list{0, 1, 2, 3, 4};
    const auto tensor = at::arange(5);
    for (const bool pad : {false, true}) {
      const auto& expected = (pad ? padded : plain)[rank];
      EXPECT_EQ(accelerator.split_between_processes(list, pad), expected);
      const auto share = accelerator.split_between_processes(tensor, pad);
      EXPECT_EQ(std::vector<std::int64_t>(share.data_ptr<std::int64_t>(), share.data_ptr<std::int64_t>() + share.numel()), expected);
      const auto map = accelerator.split_between_processes(std::map<std::string, at::Tensor>{{"a", tensor}, {"b", tensor + 1}}, pad);
      EXPECT_TRUE(at::equal(map.at("b"), share + 1));
    }
  });
}

TEST(SplitBetweenProcesses, PadsEmptySharesWithTheLastItemOfAll) {
  run_ranks(3, [](TrainContext& context) {
    Accelerator accelerator{context};
    const std::vector<int> one{7};
    EXPECT_EQ(accelerator.split_between_processes(one).size(), context.world_rank() ? 0u : 1u);
    EXPECT_EQ(accelerator.split_between_processes(one, true), one);
    EXPECT_EQ(accelerator.split_between_processes(at::full({1, 2}, 7), true).size(0), 1);
    EXPECT_TRUE(accelerator.split_between_processes(std::vector<int>{}, true).empty());
    EXPECT_THROW((void)accelerator.split_between_processes(at::ones({})), Failure);
    EXPECT_THROW((void)accelerator.split_between_processes(std::map<std::string, at::Tensor>{{"a", at::ones({2})}, {"b", at::ones({3})}}), Failure);
  });
}

TEST(Trigger, OneRanksFlagIsEveryonesOnce) {
  run_ranks(3, [](TrainContext& context) {
    Accelerator accelerator{context};
    EXPECT_FALSE(accelerator.check_trigger());
    if (context.world_rank() == 1) accelerator.set_trigger();
    EXPECT_TRUE(accelerator.check_trigger());
    EXPECT_FALSE(accelerator.check_trigger());
  });
}

TEST(OnProcess, RunsOnTheProcessNamedOnly) {
  std::atomic<int> main = 0, last = 0, middle = 0, local = 0;
  run_ranks(3, [&](TrainContext& context) {
    Accelerator accelerator{context};
    accelerator.on_main_process([&] { main += 1 + context.world_rank(); });
    accelerator.on_last_process([&] { last += 1 + context.world_rank(); });
    accelerator.on_process(1, [&] { middle += 1 + context.world_rank(); });
    accelerator.on_local_main_process([&] { local += 1 + context.local_rank(); });
  });
  EXPECT_EQ(main, 1);
  EXPECT_EQ(last, 3);
  EXPECT_EQ(middle, 2);
  EXPECT_EQ(local, 1);
}

TEST(Autocast, CanBeSwitchedOffInside) {
  run_ranks(1, [](TrainContext& context) {
    Accelerator accelerator{context, {.mixed_precision = Precision::BF16}};
    SmallNetImpl net;
    const auto x = at::ones({2, 6});
    const auto outer = accelerator.autocast();
    {
      const auto off = accelerator.autocast({.enabled = false});
      EXPECT_EQ(net.forward(x).scalar_type(), at::kFloat);
    }
    {
      const auto uncached = accelerator.autocast({.cache_enabled = false});
      EXPECT_FALSE(at::autocast::is_autocast_cache_enabled());
      EXPECT_EQ(net.forward(x).scalar_type(), at::kBFloat16);
    }
    EXPECT_TRUE(at::autocast::is_autocast_cache_enabled());
    EXPECT_EQ(net.forward(x).scalar_type(), at::kBFloat16);
  });
}

TEST(FreeMemory, ForgetsWhatWasPrepared) {
  run_ranks(2, [](TrainContext& context) {
    Accelerator accelerator{context, {.gradient_accumulation_steps = 2}};
    auto model = std::make_shared<One>();
    AdamW optimizer{model->parameters(), {}};
    accelerator.prepare(model, optimizer);
    (void)accelerator.accumulate(model);
    EXPECT_FALSE(optimizer.acts());
    accelerator.free_memory();
    EXPECT_TRUE(optimizer.acts());
    EXPECT_TRUE(accelerator.sync_gradients());
    EXPECT_EQ(model.use_count(), 1);
    model->w.sum().backward();  // no hook is left
    model->w.mutable_grad().reset();
    accelerator.prepare(model);  // and it can be prepared again
    (void)accelerator.accumulate(model);
    (void)accelerator.accumulate(model);
    accelerator.backward(model->w.sum() * context.world_rank());
    EXPECT_NEAR(model->w.grad()[0].item<double>(), 0.25, 1e-6);
  });
}

/// Four updates w -= g, where a rank's gradients are 1 + its number.
at::Tensor train_locally(TrainContext& context, int local_sgd_steps, bool enabled, std::vector<double>& after) {
  Accelerator accelerator{context};
  auto model = std::make_shared<One>();
  accelerator.prepare(model);
  {
    LocalSGD local_sgd{accelerator, model, local_sgd_steps, enabled};
    for (int step = 0; step < 4; ++step) {
      accelerator.backward(model->w.sum() * (1 + context.world_rank()));
      at::NoGradGuard no_grad;
      model->w.sub_(model->w.grad());
      model->w.mutable_grad().reset();
      local_sgd.step();
      after.push_back(model->w[0].item<double>());
    }
  }
  accelerator.backward(model->w.sum() * (1 + context.world_rank()));
  EXPECT_NEAR(model->w.grad()[0].item<double>(), (1 + context.world_size()) / 2.0, 1e-6);
  return model->w;
}

TEST(LocalSGD, AveragesParametersEveryFewStepsAndAtTheEnd) {
  run_ranks(2, [](TrainContext& context) {
    std::vector<double> after;
    const double own = 1 + context.world_rank();
    const auto w = train_locally(context, 3, true, after);
    EXPECT_THAT(after, testing::ElementsAre(1 - own, 1 - 2 * own, 1 - 3 * 1.5, 1 - 3 * 1.5 - own));
    EXPECT_NEAR(w[0].item<double>(), 1 - 4 * 1.5, 1e-6);
  });
}

TEST(LocalSGD, ReducesGradientsAsEverWhenItIsDisabled) {
  run_ranks(2, [](TrainContext& context) {
    std::vector<double> after;
    train_locally(context, 3, false, after);
    EXPECT_THAT(after, testing::ElementsAre(-0.5, -2, -3.5, -5));
  });
}

TEST(LocalSGD, RefusesModelsItCannotAverage) {
  run_ranks(2, [](TrainContext& context) {
    Accelerator accelerator{context};
    auto model = std::make_shared<One>();
    EXPECT_THROW((LocalSGD{accelerator, model, 2}), Failure);  // not prepared
    for (auto& p : model->parameters()) p.set_requires_grad(false);
    accelerator.prepare(model);
    try {
      LocalSGD local_sgd{accelerator, model, 2};
      FAIL() << "no failure";
    } catch (const Failure& failure) {
      EXPECT_EQ(failure.code(), Errc::Unsupported);
    }
    Accelerator sharding{context, {.sharding = {.strategy = ShardingStrategy::ShardGradients}}};
    auto sharded = std::make_shared<One>();
    sharding.prepare(sharded);
    try {
      LocalSGD local_sgd{sharding, sharded, 2};
      FAIL() << "no failure";
    } catch (const Failure& failure) {
      EXPECT_EQ(failure.code(), Errc::Unsupported);
      EXPECT_THAT(failure.what(), HasSubstr("zero2"));
    }
    auto other = std::make_shared<One>();
    accelerator.prepare(other);
    EXPECT_THROW((LocalSGD{accelerator, other, 0}), Failure);
  });
}

struct Profile : testing::Test {
  std::filesystem::path directory = std::filesystem::temp_directory_path() / ("troupe_profile_" + std::to_string(::getpid()));
  Profile() { std::filesystem::remove_all(directory); }
  ~Profile() override { std::filesystem::remove_all(directory); }

  static void train_step(Accelerator& accelerator, const std::shared_ptr<SmallNetImpl>& net) {
    accelerator.backward(net->forward(at::ones({4, 6})).square().mean());
    for (auto& p : net->parameters()) p.mutable_grad().reset();
  }
  nlohmann::json trace(const std::string& name) const {
    std::ifstream in{directory / name};
    EXPECT_TRUE(in) << name;
    return nlohmann::json::parse(in).at("traceEvents");
  }
};

std::multiset<std::string> names(const nlohmann::json& events) {
  std::multiset<std::string> all;
  for (const auto& event : events) all.insert(event.at("name"));
  return all;
}

TEST_F(Profile, EveryRankWritesATraceOfItsForwardAndBackward) {
  run_ranks(2, [&](TrainContext& context) {
    Accelerator accelerator{context};
    auto net = std::make_shared<SmallNetImpl>();
    accelerator.prepare(net);
    {
      auto profile = accelerator.profile({.record_shapes = true, .output_trace_dir = directory});
      train_step(accelerator, net);
    }
    train_step(accelerator, net);  // not in the trace
  });
  for (int rank = 0; rank < 2; ++rank) {
    const auto events = trace("profile_" + std::to_string(rank) + ".json");
    const auto all = names(events);
    EXPECT_EQ(all.count("aten::addmm"), 3u);
    EXPECT_EQ(all.count("DdpEngine::finish"), 1u);
    EXPECT_EQ(all.count("TanhBackward0"), 1u);
    int with_shapes = 0;
    for (const auto& event : events) {
      if (event["ph"] == "M") continue;
      EXPECT_EQ(event["pid"], rank);
      EXPECT_GE(event["dur"].get<double>(), 0);
      with_shapes += event["name"] == "aten::addmm" && event["args"]["Input Dims"] == "[8] [4, 6] [6, 8]";
    }
    EXPECT_EQ(with_shapes, 1);
  }
}

TEST_F(Profile, FollowsItsSchedule) {
  run_ranks(1, [&](TrainContext& context) {
    Accelerator accelerator{context};
    auto net = std::make_shared<SmallNetImpl>();
    std::vector<std::string> ready;
    auto profile = accelerator.profile({.schedule_option = ProfileSchedule{.wait = 1, .warmup = 1, .active = 2, .repeat = 2},
                                        .on_trace_ready = [&](const auto& file) { ready.push_back(file.filename()); },
                                        .output_trace_dir = directory});
    for (int step = 0; step < 10; ++step) {
      train_step(accelerator, net);
      profile.step();
    }
    profile.stop();
    EXPECT_THAT(ready, testing::ElementsAre("profile_0.json", "profile_0_1.json"));
  });
  const auto first = names(trace("profile_0.json")), second = names(trace("profile_0_1.json"));
  EXPECT_EQ(first.count("aten::addmm"), 6u);
  EXPECT_EQ(first.count("ProfilerStep#2") + first.count("ProfilerStep#3"), 2u);
  EXPECT_EQ(second.count("aten::addmm"), 6u);
  EXPECT_EQ(second.count("ProfilerStep#6") + second.count("ProfilerStep#7"), 2u);
}

TEST_F(Profile, RefusesASecondOneOnAThreadAndABadSchedule) {
  run_ranks(1, [&](TrainContext& context) {
    Accelerator accelerator{context};
    const auto profile = accelerator.profile();
    EXPECT_THROW((void)accelerator.profile(), Failure);
    EXPECT_THROW((void)accelerator.profile({.schedule_option = ProfileSchedule{.active = 0}}), Failure);
  });
}

}  // namespace
}  // namespace troupe
