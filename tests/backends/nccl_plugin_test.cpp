#include <troupe/nccl.hpp>

#include <gtest/gtest.h>

namespace troupe {
namespace {

TEST(NcclPlugin, LoadsOnAHostWithOrWithoutAGpu) {
  const auto plugin = load_nccl_plugin(TROUPE_NCCL_PLUGIN);
  EXPECT_GE(plugin->device_count(), 0);
  EXPECT_GE(plugin->version(), 20000);
  EXPECT_THROW((void)plugin->communicator("too short", 0, 1, 0, std::chrono::milliseconds(100)), Failure);
}

TEST(NcclPlugin, OpensAGpuOrSaysThatThereIsNone) {
  const auto plugin = load_nccl_plugin(TROUPE_NCCL_PLUGIN);
  if (plugin->device_count() > 0) {
    EXPECT_EQ(plugin->runtime(0)->device().kind, Device::Kind::Cuda);
    return;
  }
  try {
    (void)plugin->runtime(0);
    FAIL() << "opened a GPU that is not there";
  } catch (const Failure& failure) {
    EXPECT_EQ(failure.code(), Errc::Unsupported);
    EXPECT_NE(std::string(failure.what()).find("cudaSetDevice: "), std::string::npos) << failure.what();
  }
}

TEST(NcclPlugin, SaysWhatIsMissing) {
  try {
    (void)load_nccl_plugin("/nowhere/libtroupe_nccl.so");
    FAIL() << "loaded a library that does not exist";
  } catch (const Failure& failure) {
    EXPECT_EQ(failure.code(), Errc::Unsupported);
    EXPECT_NE(std::string(failure.what()).find("/nowhere/libtroupe_nccl.so"), std::string::npos);
  }
}

}  // namespace
}  // namespace troupe
