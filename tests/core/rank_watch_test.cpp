#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <troupe/rank_watch.hpp>

#include <array>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <random>

namespace troupe {
namespace {

using namespace std::chrono_literals;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using Time = RankWatch::Time;

/// Two ranks under a watch of 2 s; a test says what each shows at every look.
class Silence : public testing::Test {
 protected:
  RankWatch watch_{2, 2s};
  Time now_ = Time{} + 1h;
  RankBeat beats_[2];
  std::set<int> in_barrier_;
  int looks_ = 0;

  void SetUp() override {
    for (int rank = 0; rank < 2; ++rank) watch_.started(rank);
  }
  /// Looks once a period for `time`; `work` changes the beats before each look. The first suspicion, and when it came.
  std::optional<Suspicion> watch(std::chrono::milliseconds time, const std::function<void()>& work) {
    const auto end = now_ + time;
    while (now_ < end) {
      work();
      for (int rank = 0; rank < 2; ++rank) watch_.beat(rank, beats_[rank]);
      if (auto suspicion = watch_.look(now_, in_barrier_)) return suspicion;
      now_ += watch_.period();
    }
    return std::nullopt;
  }
  void step(int rank) {
    ++beats_[rank].progress;
    ++beats_[rank].steps;
  }
};

TEST_F(Silence, SuspectsNobodyWhoSteps) {
  EXPECT_FALSE(watch(60s, [&] { step(0), step(1); }));
}

TEST_F(Silence, SuspectsWhoStoppedShortlyAfterTheLimit) {
  (void)watch(10s, [&] { step(0), step(1); });
  const auto began = now_;
  const auto suspicion = watch(10s, [&] { step(0); });
  ASSERT_TRUE(suspicion);
  EXPECT_EQ(suspicion->rank, 1);
  EXPECT_EQ(suspicion->steps, beats_[1].steps);
  EXPECT_THAT(suspicion->text, HasSubstr("rank 1 made no progress for 2 s (RunConfig.step_timeout) after step"));
  EXPECT_GE(now_ - began, 2s - watch_.period());
  EXPECT_LE(now_ - began, 2s + 2 * watch_.period());
}

TEST_F(Silence, BlamesNotTheOneThatWaits) {
  const auto suspicion = watch(10s, [&] { beats_[0].waiting_in = WaitingIn::Collective; });
  ASSERT_TRUE(suspicion);
  EXPECT_EQ(suspicion->rank, 1);
}

TEST_F(Silence, LeavesItToTheCollectivesDeadlineWhenAllWait) {
  EXPECT_FALSE(watch(60s, [&] { beats_[0].waiting_in = beats_[1].waiting_in = WaitingIn::Collective; }));
}

TEST_F(Silence, KnowsWhoWaitsInABarrierOfTheGroup) {
  in_barrier_ = {1};
  EXPECT_EQ(watch(10s, [] {})->rank, 0);
}

TEST_F(Silence, BlamesAStoppedProcessWhateverItStoppedIn) {
  const auto suspicion = watch(10s, [&] {
    beats_[0].waiting_in = beats_[1].waiting_in = WaitingIn::Collective;
    beats_[1].is_stopped = true;
  });
  ASSERT_TRUE(suspicion);
  EXPECT_EQ(suspicion->rank, 1);
  EXPECT_THAT(suspicion->text, HasSubstr("its process is stopped"));
}

TEST_F(Silence, BlamesWhoIsFurthestBehindWhenSeveralAreSilent) {
  beats_[0].steps = beats_[1].steps = 5;
  beats_[0].collectives = 12;
  beats_[1].collectives = 11;
  EXPECT_EQ(watch(10s, [] {})->rank, 1);
}

TEST_F(Silence, CountsOnlyTheTimeThatItLooked) {
  (void)watch(1s, [&] { step(0), step(1); });
  now_ += 1h;  // the watcher was held up
  EXPECT_FALSE(watch(1s, [] {}));
  EXPECT_TRUE(watch(2s, [] {}));
}

TEST_F(Silence, IsLookedForNoMoreThanTwentyFiveTimesASecond) {
  EXPECT_EQ(RankWatch(1, 50ms).period(), 40ms);
  EXPECT_EQ(RankWatch(1, 160ms).period(), 40ms);
  EXPECT_EQ(RankWatch(1, 2s).period(), 250ms);
  EXPECT_EQ(RankWatch(1, 10min).period(), 1s);
}

TEST_F(Silence, TakesHalfASecondOfDelayForNoSilence) {
  // Beats arrive half a second late, and each step takes half a second.
  std::deque<std::pair<Time, std::pair<RankBeat, RankBeat>>> under_way;
  RankBeat sent[2];
  EXPECT_FALSE(watch(60s, [&] {
    if (static_cast<int>((now_.time_since_epoch() / 1ms) % 500) < 250) {
      for (auto& beat : sent) ++beat.progress;
    }
    under_way.push_back({now_ + 500ms, {sent[0], sent[1]}});
    while (!under_way.empty() && under_way.front().first <= now_) {
      beats_[0] = under_way.front().second.first;
      beats_[1] = under_way.front().second.second;
      under_way.pop_front();
    }
  }));
}

TEST_F(Silence, WatchesNobodyBeforeItStartsAndAfterItEnds) {
  watch_.ended(1);
  EXPECT_FALSE(watch(10s, [&] { step(0); }));
  RankWatch fresh{2, 2s};
  for (int i = 0; i < 100; ++i) EXPECT_FALSE(fresh.look(now_ += 250ms));
}

/// A second of steps of about `base`; each rank's work varies, and all wait for the slowest.
class Pace {
 public:
  Pace(int ranks, std::uint64_t seed) : beats_(static_cast<std::size_t>(ranks)), random_(seed), watch_(ranks) {}

  std::vector<double> slowness = std::vector<double>(64, 1.0);
  double jitter = 0.1;
  /// Shares of a step that a rank of the usual speed spends in phases; nothing: nobody marks any.
  std::array<double, num_step_phases> phases{};
  std::map<std::pair<std::size_t, StepPhase>, double> phase_slowness;

  std::vector<Straggler> run(std::chrono::seconds time) {
    std::vector<Straggler> all;
    const auto end = now_ + time;
    for (int step = 0; now_ < end; ++step) {
      std::vector<std::chrono::nanoseconds> busy;
      for (std::size_t r = 0; r < beats_.size(); ++r) {
        const auto ms = 100 * slowness[r] * (1 + std::uniform_real_distribution{-jitter, jitter}(random_));
        busy.emplace_back(static_cast<std::int64_t>(ms * 1e6));
        for (std::size_t p = 0; p < num_step_phases; ++p) {
          const auto found = phase_slowness.find({r, static_cast<StepPhase>(p)});
          const std::chrono::nanoseconds own{static_cast<std::int64_t>(ms * 1e6 * phases[p])};
          const auto more = found == phase_slowness.end() ? own * 0 : std::chrono::nanoseconds{static_cast<std::int64_t>(static_cast<double>(own.count()) * (found->second - 1))};
          beats_[r].phases[p] += own + more;
          busy.back() += more;
        }
      }
      const auto longest = *std::max_element(busy.begin(), busy.end());
      for (std::size_t r = 0; r < beats_.size(); ++r) {
        ++beats_[r].steps;
        beats_[r].waited += longest - busy[r];
        watch_.beat(static_cast<int>(r), beats_[r], now_ + longest);
      }
      now_ += longest;
      for (auto& straggler : watch_.look(now_)) all.push_back(std::move(straggler));
    }
    return all;
  }
  const std::vector<double>& scores() const { return watch_.scores(); }

 private:
  std::vector<RankBeat> beats_;
  std::mt19937_64 random_;
  StragglerWatch watch_;
  Time now_ = Time{} + 1h;
};

TEST(Stragglers, NamesARankTwiceAsSlowWithin30Seconds) {
  for (const int ranks : {2, 3, 4, 16}) {
    Pace pace{ranks, 1};
    pace.slowness[1] = 2;
    const auto named = pace.run(30s);
    ASSERT_EQ(named.size(), 1u) << ranks;
    EXPECT_EQ(named[0].rank, 1);
    EXPECT_NEAR(named[0].score, 0.5, 0.05);
    EXPECT_THAT(named[0].text, HasSubstr("rank 1 is slow"));
  }
}

TEST(Stragglers, NamesOneOnceUntilItKeptUp) {
  Pace pace{3, 1};
  pace.slowness[2] = 2;
  EXPECT_EQ(pace.run(60s).size(), 1u);
  pace.slowness[2] = 1;
  EXPECT_THAT(pace.run(20s), IsEmpty());
  pace.slowness[2] = 2;
  EXPECT_EQ(pace.run(60s).size(), 1u);
}

TEST(Stragglers, RaisesNoFalseAlarmInTenHoursOfTenPercentJitter) {
  for (const int ranks : {2, 4, 16}) {
    Pace pace{ranks, 7};
    EXPECT_THAT(pace.run(10h), IsEmpty()) << ranks;
  }
}

TEST(Stragglers, NeedsFiveWindowsInARow) {
  Pace pace{4, 3};
  for (int i = 0; i < 20; ++i) {
    pace.slowness[1] = 2;
    EXPECT_THAT(pace.run(15s), IsEmpty());
    pace.slowness[1] = 1;
    EXPECT_THAT(pace.run(10s), IsEmpty());
  }
}

TEST(Stragglers, MakesWindowsLongerForSlowLoops) {
  StragglerWatch watch{2, {.window = 100ms, .windows = 1}};
  auto now = Time{} + 1h;
  RankBeat beats[2];
  std::vector<Straggler> named;
  for (int step = 0; step < 8; ++step) {  // of 10 s; rank 1 works all of it, rank 0 waits half
    now += 10s;
    beats[0].waited += 5s;
    for (int rank = 0; rank < 2; ++rank) {
      ++beats[rank].steps;
      watch.beat(rank, beats[rank], now);
    }
    for (auto& straggler : watch.look(now)) named.push_back(straggler);
  }
  ASSERT_EQ(named.size(), 1u);
  EXPECT_EQ(named[0].rank, 1);
  EXPECT_NEAR(named[0].seconds_a_step, 10, 1e-6);
}

TEST(Stragglers, NamesThePhaseInWhichARankLosesItsTime) {
  Pace pace{3, 1};
  pace.phases = {0, 0.3, 0.25, 0.35, 0.1};
  pace.phase_slowness[{1, StepPhase::Data}] = 4;  // 190 instead of 100 ms
  const auto named = pace.run(30s);
  ASSERT_EQ(named.size(), 1u);
  EXPECT_EQ(named[0].rank, 1);
  EXPECT_EQ(named[0].phase, StepPhase::Data);
  EXPECT_THAT(named[0].text, HasSubstr("rank 1 is slow at loading data: 1"));
  EXPECT_THAT(named[0].text, HasSubstr("the median of the others 3"));
}

TEST(Stragglers, NamesAPhaseThoughTheWholeStepIsNotYetThatSlow) {
  Pace pace{4, 1};
  pace.phases = {0.1, 0.2, 0.2, 0.4, 0.1};
  pace.phase_slowness[{2, StepPhase::Forward}] = 2;  // 120 instead of 100 ms
  const auto named = pace.run(30s);
  ASSERT_EQ(named.size(), 1u);
  EXPECT_EQ(named[0].rank, 2);
  EXPECT_EQ(named[0].phase, StepPhase::Forward);
  EXPECT_NEAR(named[0].score, 0.5, 0.05);
  EXPECT_THAT(named[0].text, HasSubstr("of that phase"));
}

TEST(Stragglers, CallsNoPhaseSlowThatIsNothingOfTheStep) {
  Pace pace{4, 1};
  pace.phases = {0, 0.02, 0.4, 0.48, 0.1};
  pace.phase_slowness[{2, StepPhase::Data}] = 4;  // 6 ms of 106
  EXPECT_THAT(pace.run(60s), IsEmpty());
}

TEST(Stragglers, NamesNoPhaseWhenAllAreEquallySlow) {
  Pace pace{3, 1};
  pace.phases = {0, 0.25, 0.25, 0.25, 0.25};
  pace.slowness[1] = 2;
  const auto named = pace.run(30s);
  ASSERT_EQ(named.size(), 1u);
  EXPECT_FALSE(named[0].phase);
  EXPECT_THAT(named[0].text, HasSubstr("rank 1 is slow: its own work"));
}

TEST(Stragglers, RaisesNoFalseAlarmOverPhasesOfTenPercentJitter) {
  Pace pace{4, 7};
  pace.phases = {0.01, 0.19, 0.2, 0.5, 0.1};
  EXPECT_THAT(pace.run(10h), IsEmpty());
}

TEST(Stragglers, IsNothingForOneRank) {
  Pace pace{1, 1};
  EXPECT_THAT(pace.run(60s), IsEmpty());
}

}  // namespace
}  // namespace troupe
