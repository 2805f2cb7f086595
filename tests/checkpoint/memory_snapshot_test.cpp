// Snapshots in memory as files: what is whole, what is torn, who may overwrite what.
#include <troupe/checkpoint_files.hpp>
#include <troupe/errors.hpp>
#include <troupe/memory_snapshot.hpp>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <fstream>
#include <limits>
#include <random>

#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

namespace troupe {
namespace {

namespace fs = std::filesystem;
using Taken = SnapshotWriter::Taken;

struct Memory {
  Memory() {
    char name[] = "/dev/shm/troupe-snapshot-XXXXXX";
    path = ::mkdtemp(name);
  }
  ~Memory() { fs::remove_all(path); }
  fs::path path;
};

/// A tensor "w" of `per_rank` floats on each of `ranks` ranks, all of one value, and a buffer.
struct State {
  State(int rank, int ranks, std::size_t per_rank, float value) : values(per_rank, value), buffer(3, -std::numeric_limits<float>::infinity()) {
    part.rank = rank;
    part.num_writers = ranks;
    SharedTensorFile file{.stem = "model", .tensors = {}, .metadata = {}, .mine = {}, .max_shard_bytes = 0};
    file.tensors = {{"w", SafetensorsDtype::F32, {static_cast<std::uint64_t>(ranks) * per_rank}}, {"mask", SafetensorsDtype::F32, {3}}};
    file.mine.push_back({0, static_cast<std::uint64_t>(rank) * per_rank * 4, std::as_bytes(std::span{values}), true});
    if (rank == 0) file.mine.push_back({1, 0, std::as_bytes(std::span{buffer}), false});
    part.files.push_back(std::move(file));
    part.state.emplace();
    part.state->step = std::isfinite(value) ? static_cast<std::int64_t>(value) : 0;
    part.state->world_size = ranks;
    part.rank_state.rng = "rng of " + std::to_string(rank);
  }
  std::vector<float> values, buffer;
  CheckpointPart part;
};

struct Ranks {
  Ranks(const fs::path& directory, int ranks, std::size_t floats = 5000) : count(ranks), per_rank(floats), series(begin_snapshot_series(directory)) {
    for (int r = 0; r < ranks; ++r) writers.push_back(std::make_unique<SnapshotWriter>(SnapshotWriter::Place{directory, series, 7, r, ranks}));
  }
  Taken take(int rank, std::uint64_t number, float value = std::numeric_limits<float>::quiet_NaN()) {
    const State state{rank, count, per_rank, std::isnan(value) ? static_cast<float>(number) : value};
    return writers[static_cast<std::size_t>(rank)]->take(number, state.part, 40 + number).taken;
  }
  void take_all(std::uint64_t number) {
    for (int r = 0; r < count; ++r) EXPECT_EQ(take(r, number), Taken::Good) << "rank " << r << ", number " << number;
  }
  int count;
  std::size_t per_rank;
  std::uint64_t series;
  std::vector<std::unique_ptr<SnapshotWriter>> writers;
};

std::uint64_t found(const fs::path& directory) {
  const auto info = find_snapshot(directory);
  return info ? info->number : 0;
}

void expect_values(const fs::path& snapshot, std::size_t count, float value) {
  const CheckpointReader reader{snapshot};
  std::vector<float> values(count);
  const ReadRange range{"w", 0, std::as_writable_bytes(std::span{values})};
  reader.read("model", {&range, 1});
  EXPECT_THAT(values, testing::Each(value));
}

std::vector<fs::path> files_in(const fs::path& directory) {
  std::vector<fs::path> files;
  for (const auto& entry : fs::recursive_directory_iterator{directory}) {
    if (entry.is_regular_file()) files.push_back(entry.path());
  }
  std::ranges::sort(files);
  return files;
}

TEST(MemorySnapshot, IsReadLikeACheckpoint) {
  Memory memory;
  EXPECT_FALSE(find_snapshot(memory.path / "not there"));
  Ranks ranks{memory.path, 3};
  EXPECT_FALSE(find_snapshot(memory.path));
  ranks.take_all(1);
  const auto info = find_snapshot(memory.path);
  ASSERT_TRUE(info);
  EXPECT_EQ(info->number, 1);
  EXPECT_EQ(info->attempt, 7);
  EXPECT_EQ(info->world_size, 3);
  EXPECT_EQ(info->reports, 41);
  EXPECT_EQ(info->steps, 1);
  EXPECT_TRUE(is_snapshot(info->path));
  expect_values(info->path, 15000, 1);
  const CheckpointReader reader{info->path};
  EXPECT_THAT(reader.stems(), testing::ElementsAre("model"));
  EXPECT_EQ(reader.tensors("model").size(), 2);
  EXPECT_EQ(reader.rank_state(2).rng, "rng of 2");
  EXPECT_EQ(reader.state()->step, 1);
  std::vector<float> middle(4000);  // over a border between ranks
  const ReadRange range{"w", 4 * 3000, std::as_writable_bytes(std::span{middle})};
  reader.read("model", {&range, 1});
  EXPECT_THAT(middle, testing::Each(1.0F));
}

TEST(MemorySnapshot, TwoSlotsTakeTurnsAndNothingGrowsInAThousand) {
  Memory memory;
  Ranks ranks{memory.path, 2};
  ranks.take_all(1);
  ranks.take_all(2);
  const auto files = files_in(memory.path);
  EXPECT_EQ(files.size(), 4);
  const auto space = fs::space(memory.path).available;
  std::vector<std::uintmax_t> sizes;
  for (const auto& file : files) sizes.push_back(fs::file_size(file));
  fs::path before;
  for (std::uint64_t number = 3; number <= 1000; ++number) {
    ranks.take_all(number);
    if (number % 50 > 1) continue;
    const auto info = find_snapshot(memory.path);
    ASSERT_TRUE(info);
    EXPECT_EQ(info->number, number);
    if (number % 50 == 1) {
      EXPECT_NE(info->path, before);
    }
    before = info->path;
  }
  EXPECT_EQ(files_in(memory.path), files);
  for (std::size_t i = 0; i < files.size(); ++i) EXPECT_EQ(fs::file_size(files[i]), sizes[i]);
  EXPECT_NEAR(static_cast<double>(fs::space(memory.path).available), static_cast<double>(space), 64e6);  // others use it too
  EXPECT_EQ(ranks.writers[0]->whole().size(), 2);
  EXPECT_EQ(ranks.writers[0]->whole()[1].number, 999);
}

TEST(MemorySnapshot, OneRankTooFewLeavesTheOneBefore) {
  Memory memory;
  Ranks ranks{memory.path, 2};
  ranks.take_all(1);
  ranks.take_all(2);
  EXPECT_EQ(ranks.take(0, 3), Taken::Good);
  EXPECT_EQ(found(memory.path), 2);
  // Rank 1 does not come: rank 0 must not touch the slot of number 2 …
  EXPECT_EQ(ranks.take(0, 4), Taken::Skipped);
  EXPECT_EQ(found(memory.path), 2);
  expect_values(find_snapshot(memory.path)->path, 10000, 2);
  // … and goes on when it has come, whichever number that takes part in.
  EXPECT_EQ(ranks.take(1, 3), Taken::Good);
  EXPECT_EQ(found(memory.path), 3);
  EXPECT_EQ(ranks.take(1, 4), Taken::Good);  // which rank 0 has left out
  EXPECT_EQ(found(memory.path), 3);
  EXPECT_EQ(ranks.take(0, 5), Taken::Good);
  EXPECT_EQ(found(memory.path), 3);
  EXPECT_EQ(ranks.take(1, 5), Taken::Good);
  EXPECT_EQ(found(memory.path), 5);
}

TEST(MemorySnapshot, ANumberThatARankLeftOutIsGivenUpByAll) {
  Memory memory;
  Ranks ranks{memory.path, 2};
  ranks.take_all(1);
  EXPECT_EQ(ranks.take(0, 2), Taken::Good);
  EXPECT_EQ(ranks.take(1, 3), Taken::Good);  // 2 was skipped there
  EXPECT_EQ(found(memory.path), 1);
  EXPECT_EQ(ranks.take(0, 3), Taken::Good);
  EXPECT_EQ(found(memory.path), 3);
}

TEST(MemorySnapshot, WhateverTheOrderOneIsAlwaysWhole) {
  for (unsigned seed = 0; seed < 60; ++seed) {
    Memory memory;
    Ranks ranks{memory.path, 3, 100};
    std::mt19937 random{seed};
    std::array<std::uint64_t, 3> next{1, 1, 1};
    std::uint64_t newest = 0;
    for (int i = 0; i < 150; ++i) {
      const auto r = static_cast<std::size_t>(random() % 3);
      const bool poisoned = random() % 10 == 0;
      (void)ranks.take(static_cast<int>(r), next[r]++, poisoned ? std::numeric_limits<float>::infinity() : std::nanf(""));
      const auto now = found(memory.path);
      ASSERT_GE(now, newest) << "seed " << seed << ", operation " << i;
      if (now > newest) expect_values(find_snapshot(memory.path)->path, 300, static_cast<float>(now));
      newest = now;
    }
    EXPECT_GT(newest, 1) << "seed " << seed;
  }
}

TEST(MemorySnapshot, WhatIsNotFiniteIsNeverTaken) {
  for (const float bad : {std::numeric_limits<float>::infinity(), -std::numeric_limits<float>::infinity()}) {
    Memory memory;
    Ranks ranks{memory.path, 2};
    ranks.take_all(1);
    ranks.take_all(2);
    for (std::uint64_t number = 3; number < 9; ++number) {
      EXPECT_EQ(ranks.take(0, number), Taken::Good);
      EXPECT_EQ(ranks.take(1, number, bad), Taken::NotFinite);
      EXPECT_EQ(found(memory.path), 2);
    }
    ranks.take_all(9);
    EXPECT_EQ(found(memory.path), 9);
  }
}

TEST(MemorySnapshot, ARankKilledAtAnyMomentLeavesOneWhole) {
  constexpr std::size_t per_rank = 200'000;
  for (unsigned round = 0; round < 25; ++round) {
    Memory memory;
    const auto series = begin_snapshot_series(memory.path);
    // Steps of both ranks, so that they are in step as a collective would keep them.
    auto* const steps = static_cast<std::atomic<std::uint64_t>*>(::mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
    std::array<pid_t, 2> ranks{};
    for (int r = 0; r < 2; ++r) {
      ranks[static_cast<std::size_t>(r)] = ::fork();
      if (ranks[static_cast<std::size_t>(r)] != 0) continue;
      SnapshotWriter writer{{memory.path, series, 1, r, 2}};
      State state{r, 2, per_rank, 0};
      for (std::uint64_t number = 1;; ++number) {
        std::ranges::fill(state.values, static_cast<float>(number));
        if (writer.take(number, state.part, 0).taken != Taken::Good) ::_exit(1);
        steps[r].store(number);
        while (steps[1 - r].load() < number) {
        }
      }
    }
    while (steps[0].load() < 3 || steps[1].load() < 3) ::usleep(100);
    ::usleep(round * 137 % 3000);
    const auto victim = ranks[round % 2], other = ranks[1 - round % 2];
    ::kill(victim, SIGKILL);
    ::usleep(2000);  // the other one finishes what it can
    ::kill(other, SIGKILL);
    for (const auto pid : ranks) {
      int status = 0;
      ASSERT_EQ(::waitpid(pid, &status, 0), pid);
      EXPECT_TRUE(WIFSIGNALED(status)) << "a rank skipped a number, round " << round;
    }
    const auto info = find_snapshot(memory.path);
    ASSERT_TRUE(info) << "round " << round;
    EXPECT_GE(info->number + 1, std::min(steps[0].load(), steps[1].load())) << "more than one step is lost";
    expect_values(info->path, 2 * per_rank, static_cast<float>(info->number));
    ::munmap(steps, 4096);
  }
}

TEST(MemorySnapshot, FindsOneBadNumberAnywhereInEveryType) {
  const auto check = [](SafetensorsDtype dtype, std::size_t size, const std::vector<std::uint64_t>& bad, std::uint64_t largest) {
    for (const std::size_t count : {1, 15, 16, 31, 33, 1000, 40001}) {
      for (const auto pattern : bad) {
        for (const std::size_t at : {std::size_t{0}, count / 2, count - 1}) {
          Memory memory;
          std::vector<std::byte> bytes(count * size);
          for (std::size_t i = 0; i < count; ++i) std::memcpy(&bytes[i * size], &largest, size);
          const auto take = [&](SnapshotWriter& writer, std::uint64_t number) {
            CheckpointPart part;
            part.state.emplace();
            part.files.push_back({.stem = "m", .tensors = {{"x", dtype, {count}}}, .metadata = {}, .mine = {{0, 0, bytes, true}}, .max_shard_bytes = 0});
            return writer.take(number, part, 0).taken;
          };
          SnapshotWriter writer{{memory.path, begin_snapshot_series(memory.path), 1, 0, 1}};
          EXPECT_EQ(take(writer, 1), Taken::Good) << name(dtype) << " of " << count;
          std::memcpy(&bytes[at * size], &pattern, size);
          EXPECT_EQ(take(writer, 2), Taken::NotFinite) << name(dtype) << " of " << count << " at " << at;
        }
      }
    }
  };
  check(SafetensorsDtype::F32, 4, {0x7F800000, 0xFF800000, 0x7FC00000, 0x7F800001}, 0x7F7FFFFF);
  check(SafetensorsDtype::F64, 8, {0x7FF0000000000000, 0xFFF8000000000000, 0x7FF0000000000001}, 0x7FEFFFFFFFFFFFFF);
  check(SafetensorsDtype::F16, 2, {0x7C00, 0xFC00, 0x7E00}, 0x7BFF);
  check(SafetensorsDtype::BF16, 2, {0x7F80, 0xFF80, 0x7FC0}, 0x7F7F);
}

TEST(MemorySnapshot, WithoutRoomNothingIsTakenAndTheLastOneStays) {
  Memory memory;
  const auto series = begin_snapshot_series(memory.path);
  std::uint64_t room = 10 << 10;
  const auto limited = [&](int fd, std::uint64_t bytes) { return bytes > room ? ENOSPC : ::posix_fallocate(fd, 0, static_cast<off_t>(bytes)); };
  SnapshotWriter writer{{memory.path, series, 1, 0, 1}, limited};
  const State small{0, 1, 1000, 1}, large{0, 1, 100000, 2};
  const auto outcome = writer.reserve(small.part);
  EXPECT_EQ(outcome.code(), Errc::StorageUnavailable);
  EXPECT_THAT(outcome.text(), testing::HasSubstr("--shm-size"));
  EXPECT_THAT(files_in(memory.path), testing::IsEmpty());
  room = 64 << 10;
  EXPECT_TRUE(writer.reserve(small.part).ok());
  EXPECT_EQ(writer.take(1, small.part, 0).taken, Taken::Good);
  EXPECT_EQ(writer.take(2, small.part, 0).taken, Taken::Good);
  EXPECT_THROW((void)writer.take(3, large.part, 0), Failure);
  EXPECT_EQ(found(memory.path), 2);
  EXPECT_EQ(writer.take(4, small.part, 0).taken, Taken::Good);
  EXPECT_EQ(found(memory.path), 4);
}

TEST(MemorySnapshot, GrowsWithTheState) {
  Memory memory;
  SnapshotWriter writer{{memory.path, begin_snapshot_series(memory.path), 1, 0, 1}};
  for (std::uint64_t number = 1; number < 6; ++number) {
    const auto count = 1000 * number * number;
    EXPECT_EQ(writer.take(number, State{0, 1, count, static_cast<float>(number)}.part, 0).taken, Taken::Good);
    expect_values(find_snapshot(memory.path)->path, count, static_cast<float>(number));
  }
}

TEST(MemorySnapshot, ASeriesKeepsTheOneBeforeUntilItHasItsOwn) {
  Memory memory;
  {
    Ranks four{memory.path, 4};
    four.take_all(1);
    four.take_all(2);
    EXPECT_EQ(four.take(0, 3), Taken::Good);  // and here it ended
  }
  Ranks three{memory.path, 3};
  EXPECT_EQ(files_in(memory.path).size(), 4);
  EXPECT_EQ(found(memory.path), 2);
  EXPECT_EQ(three.take(0, 1), Taken::Good);
  EXPECT_EQ(find_snapshot(memory.path)->world_size, 4);
  EXPECT_EQ(three.take(1, 1), Taken::Good);
  EXPECT_EQ(three.take(2, 1), Taken::Good);
  EXPECT_EQ(find_snapshot(memory.path)->world_size, 3);
  end_older_snapshot_series(memory.path, three.series);
  EXPECT_EQ(files_in(memory.path).size(), 3);
  remove_snapshots(memory.path);
  EXPECT_TRUE(fs::is_empty(memory.path));
}

TEST(MemorySnapshot, DamagedFilesAreNoSnapshotAndNeverMoreMemoryThanTheyHave) {
  Memory memory;
  Ranks ranks{memory.path, 2, 300};
  ranks.take_all(1);
  const auto slot = find_snapshot(memory.path)->path;
  const auto share = slot / "rank_00000.snapshot";
  const auto whole = [&] {
    std::ifstream in{share, std::ios::binary};
    return std::string{std::istreambuf_iterator<char>{in}, {}};
  }();
  const auto write = [&](const std::string& bytes) { std::ofstream{share, std::ios::binary} << bytes; };
  std::uint64_t record = 0;
  std::memcpy(&record, whole.data() + 40, sizeof record);
  ASSERT_GT(record, 100);
  int refused = 0;
  for (std::size_t at = 0; at < 4096 + record; at = at == 55 ? 4096 : at + 1) {  // header, then record
    if (at >= 20 && at < 24) continue;  // unused
    for (const char flip : {'\x01', '\x80'}) {
      auto bytes = whole;
      bytes[at] = static_cast<char>(bytes[at] ^ flip);
      write(bytes);
      std::optional<SnapshotInfo> info;
      ASSERT_NO_THROW(info = find_snapshot(memory.path)) << "byte " << at;
      EXPECT_FALSE(info) << "byte " << at;
      refused += !info;
    }
  }
  EXPECT_GT(refused, 200);
  const auto used = (4096 + record + 4095) / 4096 * 4096 + 1216 + 12;  // "w" in whole lines, the mask
  std::vector<std::size_t> sizes{used - 1};
  for (std::size_t size = 0; size < used; size += 97) sizes.push_back(size);
  for (const auto size : sizes) {
    write(whole.substr(0, size));
    EXPECT_FALSE(find_snapshot(memory.path)) << size;
    EXPECT_THROW(CheckpointReader{slot}, Failure);
  }
  write(whole);
  EXPECT_TRUE(find_snapshot(memory.path));
  fs::remove(share);
  fs::create_symlink("/dev/zero", share);
  EXPECT_FALSE(find_snapshot(memory.path));
}

TEST(MemorySnapshot, WithAHoleOrBytesTwiceIsNone) {
  const auto whole_with = [](std::size_t cut, std::size_t again) {
    Memory memory;
    const auto series = begin_snapshot_series(memory.path);
    for (int r = 0; r < 2; ++r) {
      State state{r, 2, 100, 1};
      auto& mine = state.part.files[0].mine;
      if (r == 1) mine[0].bytes = mine[0].bytes.first(400 - cut);
      if (r == 1) mine[0].begin -= again;
      EXPECT_EQ((SnapshotWriter{{memory.path, series, 1, r, 2}}.take(1, state.part, 0).taken), Taken::Good);
    }
    return find_snapshot(memory.path).has_value();
  };
  EXPECT_TRUE(whole_with(0, 0));
  EXPECT_FALSE(whole_with(4, 0));
  EXPECT_FALSE(whole_with(400, 0));
  EXPECT_FALSE(whole_with(0, 4));
}

TEST(MemorySnapshot, AReaderNoticesThatItsSlotIsWrittenTo) {
  Memory memory;
  Ranks ranks{memory.path, 1};
  ranks.take_all(1);
  const CheckpointReader reader{find_snapshot(memory.path)->path};
  ranks.take_all(2);
  std::vector<float> values(10);
  const ReadRange range{"w", 0, std::as_writable_bytes(std::span{values})};
  EXPECT_NO_THROW(reader.read("model", {&range, 1}));
  ranks.take_all(3);  // the same slot
  EXPECT_THROW(reader.read("model", {&range, 1}), Failure);
}

}  // namespace
}  // namespace troupe
