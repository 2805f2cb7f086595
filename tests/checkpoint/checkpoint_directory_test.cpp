#include <troupe/checkpoint_directory.hpp>
#include <troupe/checkpoint_files.hpp>
#include <troupe/errors.hpp>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <thread>

namespace troupe {
namespace {

using namespace std::chrono_literals;
namespace fs = std::filesystem;
using testing::HasSubstr;

struct Scratch {
  fs::path path = [] {
    char name[] = "/tmp/troupe-directory-XXXXXX";
    return fs::path{::mkdtemp(name)};
  }();
  ~Scratch() { fs::remove_all(path); }
};

/// Half of a tensor of 8 bytes, all of them `value`, by one of two ranks.
void write_half(const fs::path& target, int rank, std::byte value) {
  const std::vector<std::byte> bytes(4, value);
  CheckpointPart part;
  part.rank = rank;
  part.num_writers = 2;
  part.files.push_back({"model", {{"w", SafetensorsDtype::U8, {8}}}, {}, {{0, rank * 4u, bytes}}, 0});
  part.state = TrainState{};
  write_part(CheckpointDirectory::staging_of(target), part);
}

std::string bytes_of(const fs::path& target) {
  std::string bytes(8, '?');
  const ReadRange range{"w", 0, std::as_writable_bytes(std::span{bytes})};
  CheckpointReader{target}.read("model", {&range, 1});
  return bytes;
}

template <class Work>
Failure failure_of(Work&& work) {
  try {
    work();
  } catch (const Failure& failure) {
    return failure;
  }
  return {Errc::Ok, "nothing was thrown"};
}

std::vector<std::string> names_in(const fs::path& directory) {
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator{directory}) names.push_back(entry.path().filename().string());
  return names;
}

TEST(CheckpointDirectory, HoldsTheOldCheckpointUntilItHoldsTheNewOne) {
  const Scratch scratch;
  const auto target = scratch.path / "deep" / "saved/";  // a slash at the end, parents that are not there
  for (const char value : {'a', 'b'}) {
    CheckpointDirectory directory{target};
    directory.begin();
    write_half(target, 0, static_cast<std::byte>(value));
    write_half(target, 1, static_cast<std::byte>(value));
    if (value == 'b') {
      EXPECT_EQ(bytes_of(scratch.path / "deep" / "saved"), "aaaaaaaa");
    }
    directory.wait_for_parts(2, 1s, [] { return false; });
    directory.commit(2);
    EXPECT_EQ(bytes_of(scratch.path / "deep" / "saved"), std::string(8, value));
  }
  EXPECT_THAT(names_in(scratch.path / "deep"), testing::ElementsAre("saved"));
  EXPECT_THAT(verify_checkpoint(scratch.path / "deep" / "saved"), testing::IsEmpty());
}

TEST(CheckpointDirectory, APartThatIsMissingIsNamedAndTheOldCheckpointStays) {
  const Scratch scratch;
  const auto target = scratch.path / "saved";
  CheckpointDirectory directory{target};
  directory.begin();
  write_half(target, 0, std::byte{'a'});
  const auto late = failure_of([&] { directory.wait_for_parts(2, 30ms, [] { return false; }); });
  EXPECT_EQ(late.code(), Errc::DeadlinePassed);
  EXPECT_THAT(late.what(), HasSubstr("the part of rank 1 was not written within 30 ms"));
  EXPECT_EQ(failure_of([&] { directory.wait_for_parts(2, 10s, [] { return true; }); }).code(), Errc::DeadlinePassed);
  EXPECT_THAT(failure_of([&] { directory.commit(2); }).what(), HasSubstr("the part of rank 1"));
  CheckpointDirectory::give_up(target, 1, "disk full");
  EXPECT_THAT(failure_of([&] { directory.wait_for_parts(2, 10s, [] { return false; }); }).what(), HasSubstr("rank 1 could not save: disk full"));
  directory.discard();
  EXPECT_TRUE(fs::is_empty(scratch.path));
}

TEST(CheckpointDirectory, WaitsForPartsThatComeLater) {
  const Scratch scratch;
  const auto target = scratch.path / "saved";
  CheckpointDirectory directory{target};
  directory.begin();
  write_half(target, 0, std::byte{'a'});
  std::thread other{[&] {
    std::this_thread::sleep_for(30ms);
    write_half(target, 1, std::byte{'b'});
  }};
  directory.wait_for_parts(2, 10s, [] { return false; });
  directory.commit(2);
  other.join();
  EXPECT_EQ(bytes_of(target), "aaaabbbb");
}

TEST(CheckpointDirectory, ReplacesNothingThatIsNoCheckpoint) {
  const Scratch scratch;
  fs::create_directory(scratch.path / "mine");
  std::ofstream{scratch.path / "mine" / "notes.txt"} << "x";
  EXPECT_EQ(failure_of([&] { CheckpointDirectory{scratch.path / "mine"}.begin(); }).code(), Errc::AlreadyExists);
  EXPECT_EQ(failure_of([&] { CheckpointDirectory{scratch.path / "mine" / "notes.txt"}.begin(); }).code(), Errc::AlreadyExists);
  fs::create_directory(scratch.path / "empty");
  CheckpointDirectory{scratch.path / "empty"}.begin();
  EXPECT_EQ(failure_of([&] { CheckpointDirectory{scratch.path / "empty"}.begin(/*replace=*/false); }).code(), Errc::AlreadyExists);
}

}  // namespace
}  // namespace troupe
