// Streams and events of the host: the CPU's, and the asynchronous ones that tests of the sharding engine run on.
#include "comm_cases.hpp"
#include "device_cases.hpp"

#include <troupe/async_host.hpp>
#include <troupe/local_groups.hpp>

#include <gmock/gmock.h>

#include <thread>

namespace troupe {
namespace {

using namespace testing_ranks;
using std::chrono::milliseconds;

INSTANTIATE_TEST_SUITE_P(Host, DeviceContract,
                         testing::Values(DeviceCase{"cpu", [] { return std::shared_ptr<DeviceRuntime>{std::shared_ptr<void>{}, &cpu_runtime()}; }},
                                         DeviceCase{"async_host", [] { return async_host_runtime(); }}),
                         [](const auto& i) { return i.param.name; });

TEST(CpuRuntime, HasDoneACopyWhenTheCallReturns) {
  int from = 4, to = 0;
  auto& compute = cpu_runtime().compute_stream();
  compute.copy_async(&to, &from, sizeof to);
  EXPECT_EQ(to, 4);
  EXPECT_TRUE(compute.record()->query());
}

TEST(AsyncHost, WithoutAWaitTheCallerSeesWhatWasThereBefore) {
  const auto runtime = async_host_runtime({.max_delay = std::chrono::microseconds{2000}});
  const auto stream = runtime->create_stream();
  int early = 0;
  for (int round = 0; round < 20; ++round) {
    int from = 1, to = 0;
    stream->copy_async(&to, &from, sizeof to);
    const auto done = stream->record();
    early += !done->query();
    done->synchronize();
    EXPECT_EQ(to, 1);
  }
  EXPECT_GT(early, 10) << "a missing wait would go unseen";
}

TEST(AsyncHost, RefusesAnEventOfAnotherRuntime) {
  struct Never final : Event {
    bool query() const override { return false; }
    void synchronize() const override {}
  };
  EXPECT_THROW(async_host_runtime()->create_stream()->wait(Never{}), Failure);
  EXPECT_THROW((void)on_stream(self_communicator(), cpu_runtime()), Failure);
}

TEST(OnStream, KeepsTheContract) {
  for (const auto* body : {"overlap", "in_place", "bitwise", "owners", "widened", "split", "traffic", "bad_arguments"})
    EXPECT_EQ(failures(Ranks{"on_stream", 3, body}.join()), "") << body;
  EXPECT_EQ(failures(Ranks{"on_stream", 3, "collectives", "1027"}.join()), "");
}

TEST(OnStream, ReturnsAtOnceAndItsEventTells) {
  const auto runtime = async_host_runtime();
  auto seats = make_thread_group(2, milliseconds{20'000});
  const auto group = on_stream(std::move(seats[0]), *runtime);
  float value = 1;
  auto work = group->all_reduce({&value, 4, DType::F32}, ReduceOp::Sum);
  ASSERT_NE(work.event(), nullptr);
  EXPECT_FALSE(work.event()->query()) << "the other rank has not come";
  std::thread other([&] {
    float theirs = 2;
    EXPECT_TRUE(seats[1]->all_reduce({&theirs, 4, DType::F32}, ReduceOp::Sum).wait().ok());
  });
  runtime->compute_stream().wait(*work.event());
  EXPECT_EQ(value, 3);
  EXPECT_TRUE(work.wait().ok());
  other.join();
}

TEST(OnStream, AFailureIsTheOutcomeThoughTheEventPasses) {
  const auto runtime = async_host_runtime();
  auto seats = make_thread_group(2, milliseconds{50});
  const auto group = on_stream(std::move(seats[0]), *runtime);
  group->set_label("encoder.5");
  auto work = group->barrier();
  work.event()->synchronize();
  const auto outcome = work.wait();
  EXPECT_EQ(outcome.code(), Errc::DeadlinePassed);
  EXPECT_THAT(outcome.text(), testing::HasSubstr("barrier #1 of `encoder.5`"));
}

}  // namespace
}  // namespace troupe

int main(int argc, char** argv) {
  using namespace troupe;
  static const auto runtime = async_host_runtime({.max_delay = std::chrono::microseconds{50}});
  testing_ranks::register_contract(false);
  testing_ranks::registry().on_threads = {"on_stream"};
  static std::mutex mutex;
  static std::map<int, std::vector<std::unique_ptr<Communicator>>> seats;  // of the group that is being joined, by size
  testing_ranks::registry().joins["on_stream"] = [](const std::string&, int rank, int size, milliseconds timeout) {
    const std::lock_guard lock{mutex};
    auto& group = seats[size];
    if (group.empty()) group = make_thread_group(size, timeout);
    auto seat = on_stream(std::move(group[static_cast<std::size_t>(rank)]), *runtime);
    if (std::none_of(group.begin(), group.end(), [](const auto& left) { return left != nullptr; })) group.clear();
    return seat;
  };
  return testing_ranks::main_of_ranks(argc, argv);
}
