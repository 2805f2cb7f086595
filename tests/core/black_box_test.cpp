#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <troupe/black_box.hpp>
#include <troupe/rank_watch.hpp>

#include <memory>
#include <thread>

namespace troupe {
namespace {

using namespace std::chrono_literals;
using Clock = std::chrono::steady_clock;

class BlackBoxTest : public testing::Test {
 protected:
  std::unique_ptr<BlackBox> box_{new BlackBox{}};
};

TEST_F(BlackBoxTest, GivesTheLatestEventsOldestFirst) {
  for (std::uint64_t i = 0; i < 3000; ++i) box_->note(EventKind::Step, i, {}, {}, Clock::now());
  const auto events = box_->latest();
  ASSERT_EQ(events.size(), BlackBox::num_events);
  EXPECT_EQ(events.front().number, 3000 - BlackBox::num_events);
  EXPECT_EQ(events.back().number, 2999u);
  EXPECT_EQ(box_->latest(3).front().number, 2997u);
}

TEST_F(BlackBoxTest, KeepsTheEndOfALongLabel) {
  box_->note(EventKind::Collective, 12, "reduce_to_owners", "model.encoder.layer.11.attention.output.dense.weight", Clock::now());
  box_->note(EventKind::Collective, 13, "all_reduce", "", Clock::now());
  const auto events = box_->latest();
  EXPECT_EQ(describe(events[0]), "collective #12 reduce_to_owner of 11.attention.output.dense.weight");
  EXPECT_EQ(describe(events[1]), "collective #13 all_reduce");
}

TEST_F(BlackBoxTest, ShowsNoBytesThatCannotBePrinted) {
  box_->note(EventKind::Report, 1, "a\nb", "c\x7f\x01", Clock::now());
  EXPECT_EQ(describe(box_->latest()[0]), "report #1 a?b of c??");
}

TEST_F(BlackBoxTest, LeavesOutAnEventThatWasNeverWritten) {
  box_->next_event = 5;
  box_->events[2].words[2] = 0xFF;  // no kind
  EXPECT_TRUE(box_->latest().empty());
}

TEST_F(BlackBoxTest, CountsThePhasesOfAStepWithoutWhatItWaited) {
  const BlackBoxScope scope{box_.get()};
  box_->begin(1, 0);
  mark_phase(StepPhase::Data);
  std::this_thread::sleep_for(30ms);
  mark_phase(StepPhase::Backward);
  {
    const WaitMark mark{WaitingIn::Collective};
    std::this_thread::sleep_for(50ms);
  }
  mark_phase(StepPhase::Update);
  const auto phases = beat_of(*box_).phases;
  const auto of = [&](StepPhase phase) { return phases[static_cast<std::size_t>(phase)]; };
  EXPECT_GE(of(StepPhase::Data), 30ms);
  EXPECT_LT(of(StepPhase::Backward), 20ms);
  EXPECT_EQ(of(StepPhase::Forward), 0ms);
  box_->begin(2, 0);
  EXPECT_EQ(beat_of(*box_).phases[static_cast<std::size_t>(StepPhase::Data)], 0ms);
}

TEST_F(BlackBoxTest, CountsWhatItsThreadWaited) {
  const BlackBoxScope scope{box_.get()};
  {
    const WaitMark mark{WaitingIn::Barrier};
    EXPECT_EQ(beat_of(*box_).waiting_in, WaitingIn::Barrier);
    std::this_thread::sleep_for(20ms);
    EXPECT_GE(beat_of(*box_).waited, 20ms);  // the wait that is not over counts too
  }
  EXPECT_EQ(beat_of(*box_).waiting_in, WaitingIn::Nothing);
  EXPECT_GE(beat_of(*box_).waited, 20ms);
  EXPECT_EQ(beat_of(*box_).progress, 1u);
}

TEST_F(BlackBoxTest, IsOfTheTrainingThreadOnly) {
  const BlackBoxScope scope{box_.get()};
  EXPECT_EQ(current_black_box(), box_.get());
  std::thread{[] { EXPECT_EQ(current_black_box(), nullptr); }}.join();
}

TEST_F(BlackBoxTest, BeginsAnewWithEachAttempt) {
  box_->begin(1, 3);
  box_->steps = 7;
  box_->waiting_in = 1;
  const auto before = box_->progress.load();
  box_->begin(2, 3);
  EXPECT_EQ(box_->steps, 0u);
  EXPECT_EQ(box_->waiting_in, 0u);
  EXPECT_NE(box_->progress, before);
  EXPECT_EQ(describe(box_->latest().back()), "train function started, attempt #2");
}

}  // namespace
}  // namespace troupe
