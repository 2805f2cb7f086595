#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <troupe/chaos.hpp>
#include <troupe/errors.hpp>

#include <cstdlib>
#include <set>

namespace troupe {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

using Strikes = std::vector<ChaosStrike>;

std::string refusal(const std::string& text) {
  try {
    (void)parse_chaos(text);
  } catch (const Failure& failure) {
    EXPECT_EQ(failure.code(), Errc::InvalidConfig);
    return failure.what();
  }
  return "accepted";
}

TEST(Chaos, StrikesTheRankAtTheStepInTheFirstAttemptOnly) {
  const auto plan = parse_chaos("rank=1 step=5 kind=kill");
  EXPECT_EQ(plan.due(1, 2, 1, 5), (Strikes{{ChaosKind::Kill, 0}}));
  EXPECT_THAT(plan.due(0, 2, 1, 5), IsEmpty());
  EXPECT_THAT(plan.due(1, 2, 1, 4), IsEmpty());
  EXPECT_THAT(plan.due(1, 2, 1, 6), IsEmpty());
  EXPECT_THAT(plan.due(1, 2, 2, 5), IsEmpty());
}

TEST(Chaos, ReadsEveryKindWithItsArgument) {
  const std::vector<std::pair<std::string, ChaosStrike>> kinds{
      {"throw", {ChaosKind::Throw, 0}},          {"exit", {ChaosKind::Exit, 3}},
      {"exit:0", {ChaosKind::Exit, 0}},          {"kill", {ChaosKind::Kill, 0}},
      {"stop", {ChaosKind::Stop, 0}},            {"segv", {ChaosKind::Segv, 0}},
      {"abort", {ChaosKind::Abort, 0}},          {"oom:512M", {ChaosKind::Oom, 512LL << 20}},
      {"oom:2G", {ChaosKind::Oom, 2LL << 30}},   {"hang", {ChaosKind::Hang, 0}},
      {"wrong-collective", {ChaosKind::WrongCollective, 0}},
      {"slow:50ms", {ChaosKind::Slow, 50}},      {"slow:2s", {ChaosKind::Slow, 2000}},
      {"nan", {ChaosKind::Nan, 0}},              {"storage-slow:30s", {ChaosKind::StorageSlow, 30'000}},
      {"storage-fail", {ChaosKind::StorageFail, 1}}, {"storage-fail:4", {ChaosKind::StorageFail, 4}},
      {"driver-kill", {ChaosKind::DriverKill, 0}}};
  std::set<ChaosKind> seen;
  for (const auto& [text, strike] : kinds) {
    EXPECT_EQ(parse_chaos("step=1 kind=" + text).due(0, 1, 1, 1), (Strikes{strike})) << text;
    seen.insert(strike.kind);
    EXPECT_EQ(parse_chaos("step=1 kind=" + describe(strike)).due(0, 1, 1, 1), (Strikes{strike})) << describe(strike);
  }
  EXPECT_EQ(seen.size(), static_cast<std::size_t>(num_chaos_kinds));
}

TEST(Chaos, StrikesInTheTextsOrder) {
  const auto plan = parse_chaos(" rank=1\tstep=5 kind=slow:50ms ;; step=5 kind=throw rank=0,1 ; ");
  EXPECT_EQ(plan.due(1, 2, 1, 5), (Strikes{{ChaosKind::Slow, 50}, {ChaosKind::Throw, 0}}));
  EXPECT_EQ(plan.due(0, 2, 1, 5), (Strikes{{ChaosKind::Throw, 0}}));
}

TEST(Chaos, RepeatsEverySoManySteps) {
  const auto plan = parse_chaos("rank=* step=every:20 kind=slow:50ms attempt=*");
  for (std::uint64_t step = 1; step <= 100; ++step) {
    for (int rank = 0; rank < 3; ++rank) EXPECT_EQ(plan.due(rank, 3, 7, step).size(), step % 20 == 0 ? 1u : 0u);
  }
}

TEST(Chaos, DrawsOneRankOneStepAndOneKindAnAttemptAlwaysTheSame) {
  const std::string text = "rank=any step=5..9 kind=kill|segv|throw attempt=*; seed=7";
  const auto plan = parse_chaos(text), again = parse_chaos(text);
  std::set<int> ranks;
  std::set<std::uint64_t> steps;
  std::set<ChaosKind> kinds;
  for (std::uint64_t attempt = 1; attempt <= 60; ++attempt) {
    int strikes = 0;
    for (int rank = 0; rank < 4; ++rank) {
      for (std::uint64_t step = 1; step <= 20; ++step) {
        const auto due = plan.due(rank, 4, attempt, step);
        EXPECT_EQ(due, again.due(rank, 4, attempt, step));
        if (due.empty()) continue;
        ++strikes;
        ranks.insert(rank);
        steps.insert(step);
        kinds.insert(due[0].kind);
      }
    }
    EXPECT_EQ(strikes, 1) << "attempt " << attempt;
  }
  EXPECT_THAT(ranks, ElementsAre(0, 1, 2, 3));
  EXPECT_THAT(steps, ElementsAre(5, 6, 7, 8, 9));
  EXPECT_EQ(kinds.size(), 3u);
  EXPECT_NE(parse_chaos("rank=any step=1..1000 kind=kill; seed=1").preview(1000, 1), parse_chaos("rank=any step=1..1000 kind=kill; seed=2").preview(1000, 1));
}

TEST(Chaos, SaysWhatStrikes) {
  EXPECT_THAT(parse_chaos("rank=1 step=5 kind=kill; rank=0,2 step=every:20 kind=slow:50ms attempt=*").preview(4, 2),
              ElementsAre("ranks 0, 2, every step that divides by 20: slow:50ms"));
  EXPECT_THAT(parse_chaos("rank=1 step=5 kind=exit:9").preview(4, 1), ElementsAre("rank 1, step 5: exit:9"));
}

TEST(Chaos, IsNothingWhenNothingIsWritten) {
  EXPECT_TRUE(parse_chaos("").empty());
  EXPECT_TRUE(parse_chaos(" ; seed=3 ;").empty());
}

TEST(Chaos, NamesTheFaultAndTheWordThatIsWrong) {
  EXPECT_EQ(refusal("step=1 kind=throw; rnk=1 step=5 kind=kill"), "chaos: in 'rnk=1 step=5 kind=kill': 'rnk' is unknown; did you mean 'rank'?");
  EXPECT_THAT(refusal("rank=1 step=5 kind=kil"), HasSubstr("kind 'kil' is unknown; did you mean 'kill'?"));
  EXPECT_THAT(refusal("rank=1 kind=kill"), HasSubstr("no step="));
  EXPECT_THAT(refusal("rank=1 step=5"), HasSubstr("no kind="));
  EXPECT_THAT(refusal("rank=1 rank=2 step=5 kind=kill"), HasSubstr("rank= is there twice"));
  EXPECT_THAT(refusal("rank 1 step=5 kind=kill"), HasSubstr("'rank' is no key=value"));
  for (const auto* rank : {"x", "-1", "1,", "", "16384", "1..3"}) EXPECT_THAT(refusal(std::string("step=5 kind=kill rank=") + rank), HasSubstr("is not understood; a rank")) << rank;
  for (const auto* step : {"0", "x", "", "-5", "9..5", "5..", "every:0", "every:", "every:2..4", "99999999999999999999"}) {
    EXPECT_THAT(refusal(std::string("kind=kill step=") + step), HasSubstr("is not understood; a step")) << step;
  }
  for (const auto* attempt : {"0", "x", ""}) EXPECT_THAT(refusal(std::string("kind=kill step=1 attempt=") + attempt), HasSubstr("attempt=")) << attempt;
  for (const auto* kind : {"exit:256", "exit:x", "slow", "slow:5", "slow:0ms", "slow:9999999999999s", "oom", "oom:5", "oom:0M", "storage-fail:0", "storage-slow", "kill:9", "throw:"}) {
    EXPECT_THAT(refusal(std::string("step=1 kind=") + kind), HasSubstr(kind)) << kind;
  }
  EXPECT_THAT(refusal("step=1 kind=kill seed=3"), HasSubstr("whole text"));
  EXPECT_THAT(refusal("seed=1; seed=2"), HasSubstr("twice"));
  EXPECT_THAT(refusal("seed=x"), HasSubstr("'seed=x'"));
}

TEST(Chaos, IsRefusedWhereItCannotStrike) {
  const auto check = [](const std::string& text, int ranks, Placement placement) -> std::string {
    ScalingConfig scaling;
    scaling.num_workers = ranks;
    scaling.placement = placement;
    try {
      validate(parse_chaos(text), scaling);
    } catch (const Failure& failure) {
      return failure.what();
    }
    return "accepted";
  };
  EXPECT_EQ(check("rank=1 step=5 kind=kill", 2, Placement::Processes), "accepted");
  EXPECT_EQ(check("rank=1 step=5 kind=throw", 2, Placement::Threads), "accepted");
  EXPECT_THAT(check("rank=2 step=5 kind=throw", 2, Placement::Processes), HasSubstr("is for rank 2, but there are 2 ranks"));
  EXPECT_THAT(check("rank=1 step=5 kind=throw|segv", 2, Placement::Threads), HasSubstr("placement = Processes"));
}

TEST(Chaos, ComesFromTheEnvironmentFirst) {
  unsetenv("TROUPE_CHAOS");
  EXPECT_EQ(chaos_in_force("step=1 kind=throw"), "step=1 kind=throw");
  setenv("TROUPE_CHAOS", "", 1);
  EXPECT_EQ(chaos_in_force("step=1 kind=throw"), "");
  unsetenv("TROUPE_CHAOS");
}

}  // namespace
}  // namespace troupe
