#include "fault_run.hpp"

#include <sys/syscall.h>
#include <sys/time.h>

#include <atomic>
#include <csignal>
#include <ctime>

// The wall clock of this program and of its ranks jumps an hour forth and back all the time. The functions below stand before the C
// library's, for libstdc++ as well; the steady clock is left alone, as it is when an administrator or NTP sets the time.

namespace {

std::atomic<int> num_jumped{0};

long jump() {
  timespec steady{};
  syscall(SYS_clock_gettime, CLOCK_MONOTONIC, &steady);
  ++num_jumped;
  const long places[] = {0, 3600, 0, -3600};
  return places[(steady.tv_nsec / 1'000'000 / 25) % 4];
}

}  // namespace

extern "C" {
int clock_gettime(clockid_t clock, timespec* time) noexcept {
  const auto result = static_cast<int>(syscall(SYS_clock_gettime, clock, time));
  if (result == 0 && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) time->tv_sec += jump();
  return result;
}
int gettimeofday(timeval* time, void*) noexcept {
  timespec now{};
  clock_gettime(CLOCK_REALTIME, &now);
  *time = {now.tv_sec, now.tv_nsec / 1000};
  return 0;
}
time_t time(time_t* at) noexcept {
  timespec now{};
  clock_gettime(CLOCK_REALTIME, &now);
  if (at) *at = now.tv_sec;
  return now.tv_sec;
}
}

namespace troupe {
namespace {

using namespace std::chrono_literals;
using testing::HasSubstr;

class ClockJumps : public FaultRun, public testing::WithParamInterface<Placement> {
 protected:
  void SetUp() override {
    options_.scaling.placement = GetParam();
    options_.run.step_timeout = 1s;
    options_.run.collective_timeout = 2s;
    options_.run.stop_grace = 2s;
    config_.set("steps", 40);
    config_.set("step_ms", 20);
  }
};

TEST_P(ClockJumps, ReallyJump) {
  const auto now = std::chrono::system_clock::now();
  for (int i = 0; i < 100; ++i) {
    std::this_thread::sleep_for(2ms);
    const auto moved = std::chrono::system_clock::now() - now;
    if (moved > 30min || moved < -30min) return;
  }
  FAIL() << "this test proves nothing";
}

TEST_P(ClockJumps, EndNobodyAndReorderNothing) {
  const auto result = run("");
  ASSERT_TRUE(result.ok()) << result.error->message;
  ASSERT_EQ(result.history.size(), 2u);
  for (const auto& report : result.history) {
    EXPECT_EQ(report.attempt, 1u);
    EXPECT_GE(report.time_s, 0);
    EXPECT_LT(report.time_s, 60);
  }
}

TEST_P(ClockJumps, DelayNoRestart) {
  options_.run.failure.max_failures = 2;
  const auto before = std::chrono::steady_clock::now();
  const auto result = run("rank=1 step=5 kind=throw attempt=1; rank=1 step=5 kind=throw attempt=2");
  ASSERT_TRUE(result.ok()) << result.error->message;
  EXPECT_EQ(result.history.back().attempt, 3u);
  EXPECT_LT(std::chrono::steady_clock::now() - before, 20s);
}

TEST_P(ClockJumps, HideNoHang) {
  const auto before = std::chrono::steady_clock::now();
  const auto result = run("rank=1 step=5 kind=hang");
  ASSERT_TRUE(result.error);
  EXPECT_EQ(result.error->code, Errc::DeadlinePassed);
  EXPECT_THAT(result.error->message, HasSubstr("rank 1 made no progress for 1 s"));
  EXPECT_LT(std::chrono::steady_clock::now() - before, 20s);
}

INSTANTIATE_TEST_SUITE_P(Placements, ClockJumps, testing::Values(Placement::Threads, Placement::Processes),
                         [](const auto& test) { return test.param == Placement::Threads ? "Threads" : "Processes"; });

}  // namespace
}  // namespace troupe
