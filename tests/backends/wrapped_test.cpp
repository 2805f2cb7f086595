// Communicators that do something around others: slow wires, checks before each collective.
#include "comm_cases.hpp"

#include <troupe/checked_communicator.hpp>
#include <troupe/delayed_communicator.hpp>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <time.h>

#include <algorithm>
#include <mutex>
#include <random>

#include <thread>

namespace troupe {
namespace {

using namespace testing_ranks;
using std::chrono::milliseconds;
using testing::HasSubstr;
using Clock = std::chrono::steady_clock;

/// Thread groups that stand for ones of which nothing but the Communicator is known.
class Wrapped : public testing::TestWithParam<const char*> {};

TEST_P(Wrapped, KeepsTheContract) {
  for (const auto* body : {"overlap", "in_place", "bitwise", "owners", "widened", "split", "traffic", "bad_arguments"})
    EXPECT_EQ(failures(Ranks{GetParam(), 3, body}.join()), "") << body;
  EXPECT_EQ(failures(Ranks{GetParam(), 3, "collectives", "1027"}.join()), "");
}

INSTANTIATE_TEST_SUITE_P(By, Wrapped, testing::Values("checked", "delayed"), [](const auto& i) { return std::string{i.param}; });

TEST(CheckedCommunicator, NamesEachRanksCallOnAllRanksAtOnce) {
  const auto results = Ranks{"checked", 4, "mismatch"}.join();
  EXPECT_EQ(failures(results), "");
  for (const auto& result : results)
    // #1 and #2 were the split that made the side group.
    EXPECT_EQ(result.text, "ranks disagree: rank 1 is at broadcast #4 of `encoder.6` (from rank 0, F32 x 4); ranks 0, 2, 3 are at all_reduce #4 of "
                           "`encoder.5` (sum, F32 x 8)\n");
}

TEST(CheckedCommunicator, FindsLabelsThatDifferThoughTheCallsAreTheSame) {
  auto seats = make_thread_group(2, milliseconds{20'000});
  std::vector<Outcome> outcomes(2);
  const auto rank = [&](std::size_t r) {
    const auto group = checked_communicator(std::move(seats[r]));
    group->set_label(r == 0 ? "encoder.5" : "encoder.6");
    outcomes[r] = group->barrier().wait();
  };
  std::thread other([&] { rank(1); });
  rank(0);
  other.join();
  for (const auto& outcome : outcomes) {
    EXPECT_EQ(outcome.code(), Errc::CollectiveMismatch);
    EXPECT_EQ(outcome.text(), "ranks disagree: rank 0 is at barrier #3 of `encoder.5`; rank 1 is at barrier #3 of `encoder.6`");
  }
}

TEST(CheckedCommunicator, SaysWhatWasToBeCheckedWhenARankDoesNotCome) {
  auto seats = make_thread_group(2, milliseconds{20'000});
  std::string text;
  std::thread other([&] {
    const auto group = checked_communicator(std::move(seats[1]));
    group->barrier().wait().or_throw();
    std::this_thread::sleep_for(milliseconds{150});
  });
  const auto group = checked_communicator(std::move(seats[0]));
  group->barrier().wait().or_throw();
  group->set_timeout(milliseconds{50});
  group->set_label("loss");
  const auto outcome = group->barrier().wait();
  EXPECT_EQ(outcome.code(), Errc::DeadlinePassed);
  EXPECT_THAT(outcome.text(), HasSubstr("of `check of barrier #4 of `loss`` (U8 x 112) in the group of ranks 0, 1: rank 1 did not come within 50 ms"));
  EXPECT_THAT(outcome.text(), HasSubstr("rank 1's last was all_gather #1 of `check of barrier #3`"));
  EXPECT_FALSE(group->barrier().wait().ok()) << "the group is broken from then on";
  other.join();
}

milliseconds cpu_time() {
  timespec time{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return milliseconds{time.tv_sec * 1000 + time.tv_nsec / 1'000'000};
}

/// Seats of two ranks over a wire; the other rank answers each all_reduce of `bytes`.
void over_a_wire(const Wire& wire, std::size_t bytes, int times, const std::function<void(Communicator&, Buffer)>& body) {
  auto seats = make_thread_group(2, milliseconds{20'000});
  std::vector<char> mine(bytes), theirs(bytes);
  std::thread other([&] {
    for (int i = 0; i < times; ++i) (void)seats[1]->all_reduce({theirs.data(), bytes, DType::U8}, ReduceOp::Sum).wait();
  });
  const auto group = delayed_communicator(std::move(seats[0]), wire);
  body(*group, {mine.data(), bytes, DType::U8});
  other.join();
}

TEST(DelayedCommunicator, TakesAsLongAsTheWireAndNoProcessorTime) {
  // 1 MB of all_reduce between two ranks sends 1 MB: 50 ms at 20 MB/s, then 10 ms of latency.
  over_a_wire({.latency = milliseconds{10}, .bytes_per_second = 20e6}, 1'000'000, 2, [](Communicator& group, Buffer buffer) {
    const auto start = Clock::now();
    const auto cpu = cpu_time();
    auto first = group.all_reduce(buffer, ReduceOp::Sum), second = group.all_reduce(buffer, ReduceOp::Sum);
    EXPECT_FALSE(first.poll());
    ASSERT_TRUE(first.wait().ok());
    const auto one = Clock::now() - start;
    ASSERT_TRUE(second.wait().ok());
    const auto both = Clock::now() - start;
    EXPECT_GE(one, milliseconds{60});
    EXPECT_GE(both, milliseconds{110}) << "the wire carries one after the other";
    EXPECT_LT(cpu_time() - cpu, milliseconds{60});
  });
}

TEST(DelayedCommunicator, DelaysEachCollectiveByWhatTheSeedDraws) {
  constexpr Clock::duration most = milliseconds{20};
  over_a_wire({.jitter = most, .seed = 7}, 8, 6, [&](Communicator& group, Buffer buffer) {
    std::mt19937_64 random{7};
    std::uniform_int_distribution<std::int64_t> jitter{0, std::chrono::nanoseconds{most}.count()};
    for (int i = 0; i < 6; ++i) {
      const auto start = Clock::now();
      group.all_reduce(buffer, ReduceOp::Sum).wait().or_throw();
      EXPECT_GE(Clock::now() - start, std::chrono::nanoseconds{jitter(random)}) << i;
    }
  });
}

}  // namespace
}  // namespace troupe

int main(int argc, char** argv) {
  using namespace troupe;
  testing_ranks::register_contract(true);
  auto& all = testing_ranks::registry();
  static std::mutex mutex;
  static std::map<std::string, std::vector<std::unique_ptr<Communicator>>> groups;  // the first rank to join makes one
  const auto seat = [](const std::string& place, int rank, int size, std::chrono::milliseconds timeout) {
    const std::lock_guard lock{mutex};
    auto& seats = groups[place];
    if (seats.empty()) seats = make_thread_group(size, timeout);
    auto mine = std::move(seats[static_cast<std::size_t>(rank)]);
    if (std::all_of(seats.begin(), seats.end(), [](const auto& s) { return s == nullptr; })) groups.erase(place);
    return mine;
  };
  all.on_threads = {"checked", "delayed"};
  all.joins["checked"] = [seat](const auto&... arguments) { return checked_communicator(seat(arguments...)); };
  all.joins["delayed"] = [seat](const auto&... arguments) {
    return delayed_communicator(seat(arguments...), {.jitter = std::chrono::microseconds{200}});
  };
  return testing_ranks::main_of_ranks(argc, argv);
}
