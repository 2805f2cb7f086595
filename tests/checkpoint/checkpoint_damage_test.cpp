#include "checkpoint_cases.hpp"
#include "simulated_file_system.hpp"

#include <commit.hpp>

#include <gmock/gmock.h>

#include <cstdlib>
#include <thread>

// Every byte of a checkpoint of 1 MB is flipped in turn: each flip is found, and the file named. A share of them without TROUPE_EVERY_BYTE.

namespace troupe {
namespace {

namespace fs = std::filesystem;
using test::SimulatedFileSystem;
using test::State;
using testing::HasSubstr;

const fs::path kCheckpoint = "/run/checkpoint_000000";

class CheckpointDamage : public testing::Test {
 protected:
  SimulatedFileSystem disk_;
  State state_{1, 3, 6};

  void SetUp() override {
    disk_.make_directory("/run");
    disk_.make_directory("/run/.staging");
    const fs::path shared = "/run/.staging/s";
    for (int rank = 0; rank < 3; ++rank) write_part(shared, state_.part(rank), disk_);
    disk_.write_file(shared / "config.json", "{\"hidden_size\": 384}\n");
    (void)detail::commit_checkpoint(disk_, "/run",
                                    {0, Metrics{{"loss", 0.1}}, {{0, shared.string()}, {1, shared.string()}, {2, shared.string()}}});
    disk_.settle();
  }

  /// What a reader that loads everything says.
  static std::string found(SimulatedFileSystem& disk, const fs::path& file) {
    try {
      const CheckpointReader reader{kCheckpoint, disk};
      if (file.filename() != manifest_name) reader.verify(file.lexically_relative(kCheckpoint).string());
    } catch (const Failure& failure) {
      return failure.code() == Errc::FileCorrupt ? failure.what() : "another failure: " + std::string(failure.what());
    }
    return "nothing";
  }

  /// Flips bit `bit` of every `stride`th byte, from the `first` on; the number of flips, and what went wrong.
  static std::uint64_t sweep(SimulatedFileSystem disk, std::uint64_t first, std::uint64_t stride, unsigned char bit, std::string& wrong) {
    std::uint64_t flips = 0, at = first;
    for (const auto& file : disk.files_below(kCheckpoint)) {
      const auto name = file.lexically_relative(kCheckpoint).string();
      for (; at < disk.bytes(file).size(); at += stride, ++flips) {
        auto& byte = disk.bytes(file)[at];
        byte = static_cast<char>(byte ^ bit);
        const auto said = found(disk, file);
        if (said.find(name) == std::string::npos) wrong += name + ", byte " + std::to_string(at) + ": " + said + "\n";
        byte = static_cast<char>(byte ^ bit);
      }
      at -= disk.bytes(file).size();
    }
    return flips;
  }
};

TEST_F(CheckpointDamage, IsFoundInEveryByteThatIsFlipped) {
  const bool every = std::getenv("TROUPE_EVERY_BYTE") != nullptr;
  const std::uint64_t stride = every ? 2 : 194;  // of each of two threads
  std::uint64_t size = 0;
  for (const auto& file : disk_.files_below(kCheckpoint)) size += disk_.bytes(file).size();
  ASSERT_GT(size, 900'000u);
  std::uint64_t flips[2] = {};
  std::string wrong[2];
  {
    std::vector<std::jthread> threads;
    for (std::uint64_t i = 0; i < 2; ++i) {
      threads.emplace_back(
          [&, i] { flips[i] = sweep(disk_, i * stride / 2, stride, static_cast<unsigned char>(1U << (i * 5)), wrong[i]); });
    }
  }
  EXPECT_EQ(wrong[0] + wrong[1], "");
  EXPECT_GE(flips[0] + flips[1], size / (stride / 2));
  if (every) {
    EXPECT_EQ(flips[0] + flips[1], size);
  }
  RecordProperty("flips", static_cast<int>(flips[0] + flips[1]));
  EXPECT_EQ(found(disk_, kCheckpoint / "model.safetensors"), "nothing");  // the sweep put everything back
}

TEST_F(CheckpointDamage, NamesFileTensorBytesAndRank) {
  const CheckpointReader reader{kCheckpoint, disk_};
  const auto& tensor = *reader.manifest().find_tensor("model", "embed");
  disk_.bytes(kCheckpoint / "model.safetensors")[tensor.begin + 1] ^= 4;
  std::string into(tensor.bytes, 0);
  const std::vector<ReadRange> ranges{{"embed", 0, std::as_writable_bytes(std::span{into})}};
  const auto failure = test::failure_of([&] { reader.read("model", ranges); });
  EXPECT_EQ(failure.code(), Errc::FileCorrupt);
  EXPECT_THAT(failure.what(), testing::AllOf(HasSubstr("model.safetensors: bytes "), HasSubstr("'embed'"), HasSubstr("written by rank 1"),
                                             HasSubstr("use another checkpoint")));
}

TEST_F(CheckpointDamage, IsFoundWhenAFileIsCutLongerOrGone) {
  const SimulatedFileSystem whole{disk_};
  for (const auto& file : disk_.files_below(kCheckpoint)) {
    const auto name = file.filename().string();
    SimulatedFileSystem cut{whole}, longer{whole}, gone{whole};
    cut.bytes(file).pop_back();
    longer.bytes(file).push_back(' ');
    gone.remove_file(file);
    EXPECT_THAT(found(cut, file), HasSubstr(name));
    EXPECT_THAT(found(longer, file), HasSubstr(name));
    EXPECT_THAT(found(gone, file), HasSubstr(name == manifest_name ? "" : name));
  }
}

TEST_F(CheckpointDamage, MakesAReaderTakeTheOlderOneAndSayWhy) {
  const fs::path shared = "/run/.staging/t";
  const State newer{2, 1};
  write_part(shared, newer.part(0), disk_);
  (void)detail::commit_checkpoint(disk_, "/run", {1, {}, {{0, shared.string()}}});
  disk_.bytes("/run/checkpoint_000001/rank_00000.troupe")[100] ^= 1;
  RunContents contents;
  detail::read_checkpoints(disk_, "/run", contents);
  ASSERT_EQ(contents.checkpoints.size(), 1u);
  EXPECT_EQ(contents.checkpoints[0].index, 0u);
  EXPECT_THAT(contents.warnings, testing::ElementsAre(testing::AllOf(HasSubstr("checkpoint_000001"), HasSubstr("rank_00000.troupe"))));
}

}  // namespace
}  // namespace troupe
