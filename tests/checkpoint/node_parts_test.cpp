#include "checkpoint_cases.hpp"

#include <troupe/node_parts.hpp>
#include <troupe/run_storage.hpp>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <unistd.h>

#include <fstream>

// Two nodes whose disks are directories here, and the head's.

namespace troupe {
namespace {

namespace fs = std::filesystem;
using testing::AllOf;
using testing::HasSubstr;

/// A directory as another machine's disk, which may break off.
class LocalPeer final : public PeerDisk {
 public:
  std::vector<Entry> list(const std::string& directory) override {
    std::vector<Entry> entries;
    for (const auto& entry : fs::recursive_directory_iterator{directory}) {
      if (entry.is_regular_file()) entries.push_back({fs::relative(entry.path(), directory).string(), entry.file_size()});
    }
    return entries;
  }
  void read(const std::string& directory, std::span<const FilePiece> pieces, const std::function<void(const FilePiece&, std::string_view)>& take) override {
    for (const auto& piece : pieces) {
      if (pieces_left == 0) throw Failure{Errc::NodeLost, "node b was lost"};
      if (pieces_left > 0) --pieces_left;
      std::string bytes(piece.length, '\0');
      std::ifstream file{fs::path{directory} / piece.file, std::ios::binary};
      file.seekg(static_cast<std::streamoff>(piece.begin));
      file.read(bytes.data(), piece.length);
      bytes.resize(static_cast<std::size_t>(file.gcount()));
      check_piece(piece, bytes, "node b");
      bytes_read += bytes.size();
      take(piece, bytes);
    }
  }
  int pieces_left = -1;  // -1: all
  std::uint64_t bytes_read = 0;
};

class NodeParts : public testing::Test {
 protected:
  static constexpr int num_writers = 4;
  fs::path directory_ = fs::temp_directory_path() / ("troupe-parts-" + std::to_string(getpid()));
  test::State state_{7, num_writers, 24};  // more than one segment
  LocalPeer peer_;
  const PartNote note_{"b", "host:/head", "1f", {{"a", {0, 1}}, {"b", {2, 3}}}};

  void SetUp() override {
    fs::remove_all(directory_);
    for (const auto* disk : {"head", "a", "b"}) fs::create_directories(directory_ / disk / ".staging");
  }
  void TearDown() override { fs::remove_all(directory_); }

  fs::path disk(const std::string& name) const { return directory_ / name; }
  fs::path staging(const std::string& name) const { return disk(name) / ".staging" / "shared"; }
  fs::path checkpoint(const std::string& name) const { return disk(name) / checkpoint_name(3); }
  static std::string bytes_of(const fs::path& file) {
    std::ifstream stream{file, std::ios::binary};
    return {std::istreambuf_iterator<char>{stream}, {}};
  }
  static void flip(const fs::path& file, std::uint64_t at) {
    std::fstream stream{file, std::ios::binary | std::ios::in | std::ios::out};
    stream.seekg(static_cast<std::streamoff>(at));
    const char byte = static_cast<char>(stream.get() ^ 1);
    stream.seekp(static_cast<std::streamoff>(at));
    stream.put(byte);
  }

  void write_parts() {
    for (int rank = 0; rank < num_writers; ++rank) write_part(staging(rank < 2 ? "a" : "b"), state_.part(rank));
    std::ofstream{staging("a") / "config.json"} << "{}";
  }
  void gather() {
    for (const auto* node : {"a", "b"}) gather_part(peer_, staging(node).string(), staging("head"), std::string("node ") + node);
  }
  void commit() {
    RunConfig run;
    run.storage_path = directory_;
    run.name = "head";
    const CompleteCheckpoint complete{3, {}, {{0, staging("head").string()}, {1, staging("head").string()}, {2, staging("head").string()}, {3, staging("head").string()}}};
    RunStorage storage{run, [&](const auto&) {
                         write_parts();
                       }};
    gather();
    (void)storage.commit(complete);
  }
  void keep(const std::string& node) {
    auto note = note_;
    note.node = node;
    keep_part(disk(node), 3, {staging(node).string()}, {{manifest_name, bytes_of(checkpoint("head") / manifest_name)}}, note);
  }
  Filled fill(const std::string& node) {
    return fill_checkpoint(checkpoint(node), bytes_of(checkpoint("head") / manifest_name), peer_, checkpoint("head").string(), {node, "host:/head", "1f", {}});
  }
  void expect_whole(const std::string& name) { EXPECT_EQ(state_.difference(CheckpointReader{checkpoint(name)}), "") << name; }
};

TEST_F(NodeParts, AreGatheredToAWholeCheckpoint) {
  commit();
  expect_whole("head");
  EXPECT_TRUE(verify_checkpoint(checkpoint("head")).empty());
  EXPECT_TRUE(fs::exists(checkpoint("head") / "config.json"));
}

TEST_F(NodeParts, SayWhoseTheyAreAndWhereTheWholeIs) {
  commit();
  keep("b");
  const auto refused = test::failure_of([&] { CheckpointReader{checkpoint("b")}; });
  EXPECT_EQ(refused.code(), Errc::NotFound);
  EXPECT_THAT(refused.what(), AllOf(HasSubstr("the part of node b (ranks 2, 3)"), HasSubstr("the whole is at host:/head"), HasSubstr("other parts on node a (ranks 0, 1)")));
  EXPECT_TRUE(verify_part(checkpoint("b"), *read_part_note(checkpoint("b"))).empty());
  EXPECT_FALSE(fs::exists(staging("b")));
}

TEST_F(NodeParts, AreFilledWithWhatTheyLackOnly) {
  commit();
  keep("b");
  peer_.bytes_read = 0;
  const auto filled = fill("b");
  EXPECT_TRUE(filled.damaged.empty()) << filled.damaged.front();
  expect_whole("b");
  std::uint64_t whole = 0;
  const CheckpointReader reader{checkpoint("head")};
  for (const auto& file : reader.manifest().files) whole += file.size;
  EXPECT_GT(filled.bytes, 0u);
  EXPECT_LT(filled.bytes, whole * 3 / 4);
  EXPECT_EQ(filled.bytes, peer_.bytes_read);
  EXPECT_EQ(fill("b").bytes, 0u);
}

TEST_F(NodeParts, AreMadeFromNothing) {
  commit();
  fs::remove_all(disk("a"));
  fs::create_directories(disk("a"));
  EXPECT_TRUE(fill("a").damaged.empty());
  expect_whole("a");
}

TEST_F(NodeParts, AreMendedAndTheDamageIsNamed) {
  commit();
  keep("b");
  const CheckpointReader reader{checkpoint("head")};
  const auto& record = *reader.manifest().find_file("model.safetensors");
  const auto mine = std::ranges::find_if(record.writers, [](const auto& run) { return run.rank == 2 && run.end > run.begin; });
  ASSERT_NE(mine, record.writers.end());
  flip(checkpoint("b") / record.name, mine->begin);
  const auto wrong = verify_part(checkpoint("b"), *read_part_note(checkpoint("b")));
  ASSERT_EQ(wrong.size(), 1u);
  EXPECT_THAT(wrong.front(), HasSubstr("model.safetensors: bytes " + std::to_string(mine->begin) + " to "));
  const auto filled = fill("b");
  ASSERT_EQ(filled.damaged.size(), 1u);
  EXPECT_THAT(filled.damaged.front(), HasSubstr("model.safetensors: bytes " + std::to_string(mine->begin) + " to "));
  expect_whole("b");
  // And one that was whole.
  flip(checkpoint("b") / record.name, record.size - 1);
  EXPECT_EQ(fill("b").damaged.size(), 1u);
  expect_whole("b");
}

TEST_F(NodeParts, GoOnFromWhereTheFillingBrokeOff) {
  commit();
  keep("b");
  for (int pieces = 0;; ++pieces) {
    peer_.pieces_left = pieces;
    try {
      EXPECT_TRUE(fill("b").damaged.empty());
      EXPECT_GT(pieces, 0);
      break;
    } catch (const Failure& failure) {
      EXPECT_EQ(failure.code(), Errc::NodeLost);
      EXPECT_TRUE(read_part_note(checkpoint("b")).has_value());
      EXPECT_THROW(CheckpointReader{checkpoint("b")}, Failure);
    }
  }
  expect_whole("b");
}

TEST_F(NodeParts, OfAnotherHistoryAreReplaced) {
  commit();
  const test::State other{8, 1};
  fs::create_directories(checkpoint("a"));
  write_part(checkpoint("a"), other.part(0));
  std::ofstream{checkpoint("a") / manifest_name} << "another";
  (void)fill("a");
  expect_whole("a");
}

TEST_F(NodeParts, ThatBreakOffAreNotCommitted) {
  write_parts();
  for (int pieces = 0;; ++pieces) {
    peer_.pieces_left = pieces;
    try {
      gather();
      EXPECT_GT(pieces, 4);
      break;
    } catch (const Failure& failure) {
      EXPECT_EQ(failure.code(), Errc::NodeLost);
    }
    fs::remove_all(staging("head"));
  }
}

TEST_F(NodeParts, WithDamagedBytesAreNotGathered) {
  write_parts();
  const auto file = staging("b") / "model.safetensors";
  for (std::uint64_t at = 0; at < fs::file_size(file); at += 4096) flip(file, at);
  const auto refused = test::failure_of([&] { gather(); });
  EXPECT_EQ(refused.code(), Errc::FileCorrupt);
  EXPECT_THAT(refused.what(), AllOf(HasSubstr("node b"), HasSubstr("model.safetensors: bytes ")));
}

TEST_F(NodeParts, MayHaveTheSameFileButNotAnotherOfItsName) {
  write_parts();
  std::ofstream{staging("b") / "config.json"} << "{}";
  EXPECT_NO_THROW(gather());
  std::ofstream{staging("b") / "config.json"} << "[]";
  const auto refused = test::failure_of([&] { gather(); });
  EXPECT_EQ(refused.code(), Errc::AlreadyExists);
  EXPECT_THAT(refused.what(), AllOf(HasSubstr("config.json"), HasSubstr("node b")));
}

TEST_F(NodeParts, AreKeptOnceByTwoNodesOfOneDisk) {
  commit();
  keep("b");
  const auto before = bytes_of(checkpoint("b") / part_note_name);
  keep("b");
  EXPECT_EQ(bytes_of(checkpoint("b") / part_note_name), before);
  EXPECT_TRUE(verify_part(checkpoint("b"), *read_part_note(checkpoint("b"))).empty());
}

TEST(CheckpointFileNames, AreThoseBelowACheckpoint) {
  EXPECT_TRUE(is_checkpoint_file("checkpoint_000003/a/b"));
  for (const auto* bad : {"checkpoint_000003", "checkpoint_000003/../x", "reports.jsonl", "checkpoint_x/a", "/etc/passwd", "checkpoint_000003/"}) {
    EXPECT_FALSE(is_checkpoint_file(bad)) << bad;
  }
}

}  // namespace
}  // namespace troupe
