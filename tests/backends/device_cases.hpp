// What every DeviceRuntime must do; a test program that includes this instantiates it for the runtimes it has.
#pragma once

#include <troupe/device.hpp>

#include <gtest/gtest.h>

#include <functional>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

namespace troupe {

struct DeviceCase {
  std::string name;
  std::function<std::shared_ptr<DeviceRuntime>()> make;
};

struct DeviceContract : testing::TestWithParam<DeviceCase> {
  std::shared_ptr<DeviceRuntime> runtime = GetParam().make();
  static constexpr std::size_t n = 1000, bytes = n * sizeof(int);
  std::shared_ptr<void> counted(int first) {
    auto memory = runtime->allocate_pinned(bytes);
    std::iota(static_cast<int*>(memory.get()), static_cast<int*>(memory.get()) + n, first);
    return memory;
  }
};

TEST_P(DeviceContract, DoesWhatAStreamIsGivenInOrder) {
  const auto stream = runtime->create_stream();
  const auto a = counted(0), b = counted(5000), out = counted(-1);
  const auto device = runtime->allocate(bytes);
  for (int round = 0; round < 20; ++round) {
    stream->copy_async(device.get(), a.get(), bytes);
    stream->copy_async(out.get(), device.get(), bytes);
    stream->copy_async(device.get(), b.get(), bytes);
    stream->fill_async(device.get(), 7, bytes / 2);
    stream->synchronize();
    EXPECT_EQ(static_cast<int*>(out.get())[n - 1], static_cast<int>(n) - 1);
    stream->copy_async(out.get(), device.get(), bytes);
    stream->copy_async(nullptr, nullptr, 0);
    stream->synchronize();
    EXPECT_EQ(static_cast<int*>(out.get())[0], 0x07070707);
    EXPECT_EQ(static_cast<int*>(out.get())[n - 1], 5000 + static_cast<int>(n) - 1);
  }
}

TEST_P(DeviceContract, OrdersStreamsByEvents) {
  const auto between = runtime->allocate(bytes);
  const auto first = runtime->create_stream(), second = runtime->create_stream();
  for (int round = 0; round < 50; ++round) {
    const auto in = counted(round), out = counted(-9);
    first->copy_async(between.get(), in.get(), bytes);
    const auto written = first->record();
    second->wait(*written);
    second->copy_async(out.get(), between.get(), bytes);
    const auto read = second->record();
    first->wait(*read);
    first->fill_async(between.get(), 0, bytes);
    read->synchronize();
    EXPECT_TRUE(written->query());
    ASSERT_EQ(static_cast<int*>(out.get())[n - 1], round + static_cast<int>(n) - 1);
  }
}

TEST_P(DeviceContract, TheComputeStreamWaitsForOthers) {
  const auto copies = runtime->create_stream();
  auto& compute = runtime->compute_stream();
  for (int round = 0; round < 50; ++round) {
    const auto in = counted(round), between = counted(-9), out = counted(-9);
    copies->copy_async(between.get(), in.get(), bytes);
    compute.wait(*copies->record());
    compute.copy_async(out.get(), between.get(), bytes);
    compute.synchronize();
    ASSERT_EQ(static_cast<int*>(out.get())[0], round);
  }
}

TEST_P(DeviceContract, AStreamThatGoesHasDoneItsWork) {
  const auto in = counted(3), out = counted(-9);
  {
    const auto stream = runtime->create_stream();
    for (int i = 0; i < 10; ++i) stream->copy_async(out.get(), in.get(), bytes);
  }
  EXPECT_EQ(static_cast<int*>(out.get())[0], 3);
}

}  // namespace troupe
