#include "checkpoint_cases.hpp"

#include <commit.hpp>
#include <real_file_system.hpp>

#include <troupe/checkpoint_directory.hpp>

#include <gmock/gmock.h>

#include <fstream>
#include <iterator>
#include <thread>

// Saves on machines that lack something, and on a file system in memory.

namespace troupe {
namespace {

namespace fs = std::filesystem;
using detail::RealFileSystemOptions;
using test::State;

struct Machine {
  std::string name;
  RealFileSystemOptions has;
  fs::path where = fs::temp_directory_path();
};

constexpr int kWriters = 3;

std::string bytes_of(const fs::path& path) {
  std::ifstream in{path, std::ios::binary};
  return {std::istreambuf_iterator<char>{in}, {}};
}

void write_parts(FileSystem& files, const fs::path& directory, const State& state, bool snapshots) {
  std::vector<std::jthread> ranks;
  for (int rank = 0; rank < kWriters; ++rank) {
    ranks.emplace_back([&, rank] {
      if (!snapshots) return write_part(directory, state.part(rank), files);
      SnapshotPool pool;
      PartSnapshot{state.part(rank), pool}.write(directory, files);
    });
  }
}

class RealFileSystem : public testing::TestWithParam<Machine> {
 protected:
  std::unique_ptr<FileSystem> files_ = detail::make_real_file_system(GetParam().has);
  fs::path root_;

  void SetUp() override {
    if (!fs::is_directory(GetParam().where)) GTEST_SKIP() << "there is no " << GetParam().where;
    auto pattern = (GetParam().where / "troupe-real-XXXXXX").string();
    root_ = ::mkdtemp(pattern.data());
  }
  void TearDown() override {
    if (!root_.empty()) fs::remove_all(root_);
  }

  fs::path save(const State& state, const std::string& run, bool snapshots, FileSystem& files) {
    detail::sweep_staging(files, root_ / run);
    const auto directory = root_ / run / ".staging" / "shared";
    write_parts(files, directory, state, snapshots);
    CompleteCheckpoint complete{4, {}, {}};
    for (int rank = 0; rank < kWriters; ++rank) complete.directories[rank] = directory.string();
    return detail::commit_checkpoint(files, root_ / run, complete).checkpoint.path();
  }
};

TEST_P(RealFileSystem, SavesTheSameBytesAsEveryOther) {
  const State state{7, kWriters, 40};  // several segments a rank, some past the page cache
  const auto usual = save(state, "usual", false, real_file_system());
  for (const bool snapshots : {false, true}) {
    const auto made = save(state, snapshots ? "snapshots" : "parts", snapshots, *files_);
    EXPECT_THAT(verify_checkpoint(made), testing::IsEmpty());
    EXPECT_EQ(state.difference(CheckpointReader{made, *files_}), "");
    for (const char* name : {"model.safetensors", "optimizer.safetensors", manifest_name}) {
      EXPECT_EQ(bytes_of(made / name), bytes_of(usual / name)) << name;
    }
  }
}

TEST_P(RealFileSystem, ReplacesACheckpointAtAPathOfTheUsers) {
  const auto target = root_ / "saved";
  for (const std::uint64_t seed : {1, 2, 3}) {
    const State state{seed, kWriters};
    CheckpointDirectory directory{target, *files_};
    directory.begin();
    write_parts(*files_, CheckpointDirectory::staging_of(target), state, false);
    directory.commit(kWriters);
    EXPECT_EQ(state.difference(CheckpointReader{target, *files_}), "");
    EXPECT_EQ(std::distance(fs::directory_iterator{root_}, {}), 1);
  }
}

TEST_P(RealFileSystem, ExchangesDirectoriesOrSaysThatItCannot) {
  for (const char* name : {"a", "b"}) {
    files_->make_directory(root_ / name);
    files_->write_atomically(root_ / name / "name", name);
  }
  const bool could = files_->exchange(root_ / "a", root_ / "b");
  EXPECT_LE(could, GetParam().has.exchange);
  EXPECT_EQ(bytes_of(root_ / "a" / "name"), could ? "b" : "a");
  EXPECT_EQ(bytes_of(root_ / "b" / "name"), could ? "a" : "b");
  if (!could) return;
  EXPECT_EQ(test::failure_of([&] { (void)files_->exchange(root_ / "a", root_ / "none"); }).code(), Errc::FileNotFound);
}

INSTANTIATE_TEST_SUITE_P(Machines, RealFileSystem,
                         testing::Values(Machine{"Usual", {}}, Machine{"NoDirect", {.direct = false}}, Machine{"NoUring", {.uring = false}},
                                         Machine{"NoDirectNoUring", {.direct = false, .uring = false}},
                                         Machine{"NoExchange", {.exchange = false}}, Machine{"InMemory", {}, "/dev/shm"},
                                         Machine{"InMemoryNoDirect", {.direct = false}, "/dev/shm"}),
                         [](const auto& param) { return param.param.name; });

}  // namespace
}  // namespace troupe
