// Sharded training on devices with streams, bit for bit what one process gets: the asynchronous host, and CUDA's and NCCL's
// logic over their host-memory stand-in.
#include "comm_ranks.hpp"
#include "device_context.hpp"
#include "shard_run.hpp"
#if TROUPE_HAVE_NCCL_LOGIC
#include "cuda_device.hpp"
#include "host_nccl.hpp"
#include "nccl_communicator.hpp"
#endif

#include <gtest/gtest.h>

#include <thread>

namespace troupe {
namespace {

namespace ranks = testing_ranks;
using test::ShardResult;

#if TROUPE_HAVE_NCCL_LOGIC
/// CUDA's streams over host memory: what LibTorch is to take for the CPU.
class InHostMemory final : public DeviceRuntime {
 public:
  explicit InHostMemory(std::unique_ptr<DeviceRuntime> cuda) : cuda_(std::move(cuda)) {}
  std::string name() const override { return cuda_->name(); }
  Device device() const noexcept override { return {}; }
  bool has_own_memory() const noexcept override { return cuda_->has_own_memory(); }
  std::unique_ptr<Stream> create_stream() override { return cuda_->create_stream(); }
  Stream& compute_stream() override { return cuda_->compute_stream(); }
  std::shared_ptr<void> allocate(std::size_t bytes) override { return cuda_->allocate(bytes); }
  std::shared_ptr<void> allocate_pinned(std::size_t bytes) override { return cuda_->allocate_pinned(bytes); }

 private:
  std::unique_ptr<DeviceRuntime> cuda_;
};

std::unique_ptr<test::DeviceContext> cuda_context(Communicator& group) {
  host_nccl::delay_streams(std::chrono::microseconds{100});
  NcclSeat seat{.id = {}, .rank = group.rank(), .size = group.size(), .device = 0, .timeout = std::chrono::seconds{20}};
  if (group.rank() == 0) (void)host_nccl::nccl().GetUniqueId(&seat.id);
  group.broadcast({seat.id.internal, sizeof seat.id.internal, DType::U8}, 0).wait().or_throw();
  return std::make_unique<test::DeviceContext>(group, std::make_unique<InHostMemory>(make_cuda_runtime(host_nccl::gpu(), 0)),
                                               make_nccl_communicator(host_nccl::nccl(), host_nccl::gpu(), seat));
}
#endif

std::unique_ptr<test::FakeContext> context_on(const std::string& device, Communicator& group) {
  if (device == "async_host") return test::async_host_context(group);
#if TROUPE_HAVE_NCCL_LOGIC
  if (device == "cuda") return cuda_context(group);
#endif
  return std::make_unique<test::FakeContext>(group);
}

/// `argument`: device, ";", case.
void train_and_compare(Communicator& group, const std::string& argument) {
  const auto cut = argument.find(';');
  const auto context = context_on(argument.substr(0, cut), group);
  const auto c = test::case_from(argument.substr(cut + 1));
  const auto ours = test::train_sharded(*context, c);
  if (group.rank() == 0) test::expect_equal(ours, test::train_alone(c, group.size()));
}

using Param = std::tuple<std::string, int, std::string>;  // device, ranks, case
struct ShardedOn : testing::TestWithParam<Param> {};

TEST_P(ShardedOn, EqualsOneProcess) {
  const auto& [device, size, text] = GetParam();
  ranks::Ranks group{"threads", size, "train", device + ";" + text};
  EXPECT_EQ(ranks::failures(group.join()), "");
}

struct ShardedProcessesOn : testing::TestWithParam<Param> {};
TEST_P(ShardedProcessesOn, EqualsOneProcess) {
  const auto& [device, size, text] = GetParam();
  ranks::Ranks group{"shared_memory", size, "train", device + ";" + text};
  EXPECT_EQ(ranks::failures(group.join()), "");
}

std::string name_of(const testing::TestParamInfo<Param>& info) {
  auto name = std::get<0>(info.param) + "_" + std::to_string(std::get<1>(info.param)) + "_" + std::get<2>(info.param);
  for (auto& c : name) {
    if (!std::isalnum(static_cast<unsigned char>(c))) c = '_';
  }
  return name;
}

#if TROUPE_HAVE_NCCL_LOGIC
const auto kDevices = testing::Values("async_host", "cuda");
const std::vector<std::string> kDeviceNames{"cpu", "async_host", "cuda"};
#else
const auto kDevices = testing::Values("async_host");
const std::vector<std::string> kDeviceNames{"cpu", "async_host"};
#endif
INSTANTIATE_TEST_SUITE_P(Two, ShardedOn,
                         testing::Combine(kDevices, testing::Values(2),
                                          testing::Values("zero1", "zero2", "zero3", "zero3,reshard=0", "zero1,accumulation=2", "zero2,accumulation=4",
                                                          "zero3,clip=0.5,accumulation=2", "zero3,persist=20", "zero2,bucket=20", "zero3,nowrap",
                                                          "zero3,prefetch=0", "zero3,zeroed,accumulation=2", "zero3,recompute",
                                                          "zero3,recompute,to_host,accumulation=2", "zero3,debug", "zero1,offload=host",
                                                          "zero2,offload=host,accumulation=2", "zero3,offload=host,clip=0.5",
                                                          "zero3,offload=host,zeroed,accumulation=2", "zero3,offload=disk,accumulation=2")),
                         name_of);
INSTANTIATE_TEST_SUITE_P(More, ShardedOn,
                         testing::Combine(kDevices, testing::Values(4), testing::Values("zero3,group=2", "zero2,group=2,clip=0.5", "zero3,offload=host")), name_of);
INSTANTIATE_TEST_SUITE_P(Processes, ShardedProcessesOn,
                         testing::Combine(testing::Values("async_host"), testing::Values(2), testing::Values("zero3,clip=0.5", "zero2,offload=host")), name_of);

/// In bf16 there is no one process to compare with, but every device makes the same roundings.
TEST(ShardedOnBf16, DevicesAgreeBitForBit) {
  for (const std::string text : {"zero1,bf16", "zero2,bf16,accumulation=2", "zero3,bf16", "zero3,bf16,offload=host", "zero1,bf16,offload=host,accumulation=2"}) {
    std::vector<ShardResult> results;
    for (const auto& device : kDeviceNames) {
      test::run_ranks(2, [&](TrainContext& outer) {
        const auto context = context_on(device, outer.communicator());
        auto result = test::train_sharded(*context, test::case_from(text));
        if (outer.world_rank() == 0) results.push_back(std::move(result));
      });
      EXPECT_NO_THROW(test::expect_equal(results.back(), results.front())) << text << " on " << device;
    }
  }
}

TEST(ShardedOnAsyncHost, ARankThatDoesNotComeIsNamed) {
  auto seats = make_thread_group(2, std::chrono::milliseconds{3000});
  std::vector<std::string> texts(2);
  const auto rank = [&](std::size_t r) {
    auto c = test::case_from("zero3");
    c.steps = r == 0 ? 2 : 1;
    c.gathers_result = false;
    try {
      const auto context = test::async_host_context(*seats[r]);
      (void)test::train_sharded(*context, c);
    } catch (const Failure& failure) {
      texts[r] = failure.what();
    }
  };
  std::thread other{rank, 1};
  rank(0);
  other.join();
  EXPECT_NE(texts[0].find("rank 1"), std::string::npos) << texts[0];
  EXPECT_NE(texts[0].find("all_gather #"), std::string::npos) << texts[0];
  EXPECT_EQ(texts[1], "");
}

}  // namespace
}  // namespace troupe

int main(int argc, char** argv) {
  troupe::testing_ranks::registry().bodies["train"] = troupe::train_and_compare;
  return troupe::testing_ranks::main_of_ranks(argc, argv);
}
