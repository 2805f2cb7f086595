#include <io/async_io.hpp>
#include <io/page_buffer.hpp>
#include <optim/scratch_file.hpp>

#include <troupe/errors.hpp>
#include <troupe/optimizer.hpp>

#include <ATen/ops/equal.h>
#include <ATen/ops/randn.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <sys/mount.h>
#include <sys/resource.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstring>
#include <filesystem>

namespace troupe {
namespace {

struct Directory {
  Directory() : path(std::filesystem::temp_directory_path() / ("troupe_offload_test." + std::to_string(::getpid()))) { std::filesystem::create_directories(path); }
  ~Directory() { std::filesystem::remove_all(path); }
  std::filesystem::path path;
};

struct Case {
  std::string name;
  Offload::Place place;
  DiskIo io = DiskIo::Any;
  int num_buffers = 4;
};

bool have_uring() { return detail::make_uring_io(0, 1) != nullptr; }

/// A model whose chunks are cut across parameters, with one that has gradients in some steps only.
struct Trainee {
  std::vector<at::Tensor> params;
  std::unique_ptr<Optimizer> optimizer;

  void step(int i, const std::vector<at::Tensor>& grads) {
    for (std::size_t p = 0; p < params.size(); ++p) {
      if (p == 1 && i % 3 != 1) params[p].mutable_grad().reset();
      else params[p].mutable_grad() = grads[p].clone();
    }
    optimizer->step();
  }
};

template <class T, class Options>
Trainee trainee(const std::vector<at::Tensor>& start, Options options) {
  Trainee t;
  for (const auto& tensor : start) t.params.push_back(tensor.clone().requires_grad_(true));
  const auto& p = t.params;
  t.optimizer = std::make_unique<T>(std::vector<ParamGroup>{{.params = {p[0], p[1], p[2]}}, {.params = {p[3]}, .lr = 0.5}}, options);
  return t;
}

struct Offloaded : testing::TestWithParam<Case> {
  Directory directory;
  [[nodiscard]] Offload offload() const {
    return {.place = GetParam().place, .path = directory.path, .chunk_bytes = 16384, .num_buffers = GetParam().num_buffers};
  }
  void SetUp() override {
    if (GetParam().io == DiskIo::IoUring && !have_uring()) GTEST_SKIP() << "this kernel or build has no io_uring";
  }

  template <class T, class Options>
  void expect_same_bits(Options options) {
    const std::vector<std::int64_t> sizes{10'000, 3'000, 1, 7'777};
    std::vector<at::Tensor> start;
    for (const auto n : sizes) start.push_back(at::randn({n}));
    auto plain = trainee<T>(start, options), kept = trainee<T>(start, options), loaded = trainee<T>(start, options);
    kept.optimizer->set_offload(offload(), 0, GetParam().io);
    loaded.optimizer->set_offload(offload(), 1, GetParam().io);
    for (int i = 0; i < 10; ++i) {
      std::vector<at::Tensor> grads;
      for (const auto n : sizes) grads.push_back(at::randn({n}));
      plain.step(i, grads);
      kept.step(i, grads);
      if (i >= 5) loaded.step(i, grads);
      if (i == 4) {  // goes on from the other's state
        loaded.optimizer->load_state(plain.optimizer->state());
        for (std::size_t p = 0; p < sizes.size(); ++p) loaded.params[p].detach().copy_(plain.params[p].detach());
      }
    }
    for (std::size_t p = 0; p < sizes.size(); ++p) {
      EXPECT_TRUE(at::equal(plain.params[p].detach(), kept.params[p].detach())) << p;
      EXPECT_TRUE(at::equal(plain.params[p].detach(), loaded.params[p].detach())) << p;
    }
    const auto expected = plain.optimizer->state(), found = kept.optimizer->state();
    ASSERT_EQ(expected.size(), found.size());
    for (std::size_t t = 0; t < expected.size(); ++t) {
      EXPECT_EQ(expected[t].first, found[t].first);
      EXPECT_TRUE(at::equal(expected[t].second, found[t].second)) << expected[t].first;
    }
  }
};

TEST_P(Offloaded, TrainsToTheSameBits) {
  expect_same_bits<AdamW>(AdamWOptions{.lr = 0.1});
  expect_same_bits<SGD>(SGDOptions{.lr = 0.1, .momentum = 0.9});
  expect_same_bits<Adagrad>(AdagradOptions{.lr = 0.1, .initial_accumulator_value = 0.3});
}

TEST_P(Offloaded, LeavesNothingInTheDirectoryEvenWhileItRuns) {
  auto run = trainee<AdamW>({at::randn({5000}), at::randn({3}), at::randn({3}), at::randn({3})}, AdamWOptions{});
  run.optimizer->set_offload(offload(), 0, GetParam().io);
  run.step(1, run.params);
  EXPECT_TRUE(std::filesystem::is_empty(directory.path));
}

INSTANTIATE_TEST_SUITE_P(Places, Offloaded,
                         testing::Values(Case{"Host", Offload::Place::Host}, Case{"IoUring", Offload::Place::Disk, DiskIo::IoUring},
                                         Case{"IoUringOneBuffer", Offload::Place::Disk, DiskIo::IoUring, 1},
                                         Case{"IoUringThreeBuffers", Offload::Place::Disk, DiskIo::IoUring, 3},
                                         Case{"Thread", Offload::Place::Disk, DiskIo::Threads}, Case{"ThreadOneBuffer", Offload::Place::Disk, DiskIo::Threads, 1},
                                         Case{"ThreadTwoBuffers", Offload::Place::Disk, DiskIo::Threads, 2}),
                         [](const auto& instance) { return instance.param.name; });

Failure failure_of(Optimizer& optimizer, const Offload& offload, int rank) {
  try {
    optimizer.set_offload(offload, rank);
  } catch (const Failure& failure) {
    return failure;
  }
  return {Errc::Ok, ""};
}

TEST(DiskOffload, NamesADirectoryThatIsMissing) {
  AdamW optimizer{std::vector<at::Tensor>{at::randn({100}).requires_grad_(true)}, {}};
  const auto failure = failure_of(optimizer, {.place = Offload::Place::Disk, .path = "/no/such/place"}, 3);
  EXPECT_EQ(failure.code(), Errc::FileNotFound);
  EXPECT_THAT(failure.what(), testing::HasSubstr("rank 3's file in /no/such/place"));
}

TEST(DiskOffload, FindsTheDiskTooSmallBeforeTrainingStarts) {
  const Directory directory;
  if (::mount("troupe_test", directory.path.c_str(), "tmpfs", 0, "size=1m") != 0) GTEST_SKIP() << "may not mount a small disk: " << std::strerror(errno);
  AdamW optimizer{std::vector<at::Tensor>{at::randn({800'000}).requires_grad_(true)}, {}};
  optimizer.repoint({{at::randn({400'000})}});
  const auto failure = failure_of(optimizer, {.place = Offload::Place::Disk, .path = directory.path}, 2);
  EXPECT_EQ(failure.code(), Errc::StorageUnavailable);
  EXPECT_THAT(failure.what(), testing::AllOf(testing::HasSubstr("rank 2's file in " + directory.path.string()), testing::HasSubstr("No space left")));
  ::umount(directory.path.c_str());
}

TEST(DiskOffload, RefusesAnOptimizerThatHasState) {
  const auto param = at::randn({10}).requires_grad_(true);
  AdamW optimizer{std::vector<at::Tensor>{param}, {}};
  param.mutable_grad() = at::randn({10});
  optimizer.step();
  EXPECT_EQ(failure_of(optimizer, {.place = Offload::Place::Host, .path = {}}, 0).code(), Errc::InvalidArgument);
}

TEST(DiskOffload, RefusesBuffersOfNoSize) {
  AdamW optimizer{std::vector<at::Tensor>{at::randn({10}).requires_grad_(true)}, {}};
  EXPECT_EQ(failure_of(optimizer, {.place = Offload::Place::Disk, .path = "/tmp", .num_buffers = 0}, 0).code(), Errc::InvalidConfig);
}

struct DiskFailure : testing::TestWithParam<DiskIo> {};
INSTANTIATE_TEST_SUITE_P(Ways, DiskFailure, testing::Values(DiskIo::IoUring, DiskIo::Threads),
                         [](const auto& instance) { return instance.param == DiskIo::IoUring ? "Uring" : "Thread"; });

/// Files of this process may not grow past `bytes` while it lives.
struct FileSizeLimit {
  explicit FileSizeLimit(rlim_t bytes) {
    ::getrlimit(RLIMIT_FSIZE, &before);
    const rlimit less{bytes, before.rlim_max};
    ::setrlimit(RLIMIT_FSIZE, &less);
  }
  ~FileSizeLimit() {
    ::setrlimit(RLIMIT_FSIZE, &before);
    std::signal(SIGXFSZ, signal);
  }
  rlimit before{};
  void (*signal)(int) = std::signal(SIGXFSZ, SIG_IGN);
};

TEST_P(DiskFailure, EndsTheStepNamingFileAndRank) {
  if (GetParam() == DiskIo::IoUring && !have_uring()) GTEST_SKIP() << "this kernel or build has no io_uring";
  const Directory directory;
  const auto param = at::randn({20'000}).requires_grad_(true);
  AdamW optimizer{std::vector<at::Tensor>{param}, {}};
  optimizer.set_offload({.place = Offload::Place::Disk, .path = directory.path, .chunk_bytes = 16384}, 5, GetParam());
  param.mutable_grad() = at::randn({20'000});
  {
    const FileSizeLimit limit{65536};  // the fifth chunk meets it
    try {
      optimizer.step();
      FAIL() << "wrote past the limit";
    } catch (const Failure& failure) {
      EXPECT_EQ(failure.code(), Errc::StorageUnavailable);
      EXPECT_THAT(failure.what(), testing::AllOf(testing::HasSubstr("rank 5's file in " + directory.path.string()), testing::HasSubstr("cannot be written")));
    }
  }
}

struct Io : testing::TestWithParam<bool> {
  [[nodiscard]] static std::unique_ptr<detail::AsyncIo> make(int fd, int tickets) {
    return GetParam() ? detail::make_uring_io(fd, tickets) : detail::make_thread_io(fd, tickets);
  }
  void SetUp() override {
    if (GetParam() && !have_uring()) GTEST_SKIP() << "this kernel or build has no io_uring";
  }
};
INSTANTIATE_TEST_SUITE_P(Ways, Io, testing::Bool(), [](const auto& instance) { return instance.param ? "Uring" : "Thread"; });

TEST_P(Io, ReadsWhatWasWrittenSeveralAtOnce) {
  const Directory directory;
  const detail::ScratchFile file{directory.path, 0};
  const auto io = make(file.fd(), 3);
  std::vector<detail::PageBuffer> buffers;
  for (int i = 0; i < 6; ++i) buffers.emplace_back(8192);
  for (int i = 0; i < 3; ++i) {
    std::memset(buffers[static_cast<std::size_t>(i)].data(), 'a' + i, 8192);
    io->begin(i, detail::AsyncIo::Kind::Write, buffers[static_cast<std::size_t>(i)].data(), 8192, 8192 * (2 - i));
  }
  for (int i = 2; i >= 0; --i) EXPECT_EQ(io->wait(i), 0);
  for (int i = 0; i < 3; ++i) io->begin(i, detail::AsyncIo::Kind::Read, buffers[static_cast<std::size_t>(3 + i)].data(), 8192, 8192 * (2 - i));
  for (int i = 0; i < 3; ++i) {
    EXPECT_EQ(io->wait(i), 0);
    EXPECT_EQ(std::memcmp(buffers[static_cast<std::size_t>(i)].data(), buffers[static_cast<std::size_t>(3 + i)].data(), 8192), 0);
  }
}

TEST_P(Io, ReportsAFileThatEndsEarlyAndOneThatIsNotThere) {
  const Directory directory;
  const detail::ScratchFile file{directory.path, 0};
  const detail::PageBuffer buffer{8192};
  const auto io = make(file.fd(), 1);
  io->begin(0, detail::AsyncIo::Kind::Read, buffer.data(), 8192, 0);
  EXPECT_EQ(io->wait(0), EIO);
  const auto closed = make(-1, 1);
  closed->begin(0, detail::AsyncIo::Kind::Write, buffer.data(), 8192, 0);
  EXPECT_EQ(closed->wait(0), EBADF);
}

}  // namespace
}  // namespace troupe
