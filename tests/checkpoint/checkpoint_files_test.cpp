#include "checkpoint_cases.hpp"
#include "simulated_file_system.hpp"

#include <commit.hpp>

#include <gmock/gmock.h>

#include <unistd.h>

#include <fstream>
#include <nlohmann/json.hpp>
#include <thread>

namespace troupe {
namespace {

namespace fs = std::filesystem;
using test::failure_of;
using test::SimulatedFileSystem;
using test::State;
using testing::AllOf;
using testing::HasSubstr;

// ---- on the real disk ---------------------------------------------------------------------------------------------

class CheckpointFiles : public testing::Test {
 protected:
  fs::path root_;
  RunConfig config_;

  void SetUp() override {
    auto pattern = (fs::temp_directory_path() / "troupe-checkpoint-XXXXXX").string();
    root_ = ::mkdtemp(pattern.data());
    config_.storage_path = root_;
    config_.name = "run";
  }
  void TearDown() override { fs::remove_all(root_); }

  fs::path shared() const { return root_ / config_.name / ".staging" / "shared"; }

  /// All ranks at once into one directory, then a commit.
  fs::path save(RunStorage& storage, const State& state, int num_writers, bool snapshots = false) {
    {
      std::vector<std::jthread> ranks;
      for (int rank = 0; rank < num_writers; ++rank) {
        ranks.emplace_back([&, rank] {
          const auto part = state.part(rank);
          if (!snapshots) return write_part(shared(), part);
          SnapshotPool pool;
          PartSnapshot snapshot{part, pool};
          snapshot.write(shared());
        });
      }
    }
    return commit(storage, num_writers);
  }
  fs::path commit(RunStorage& storage, int num_writers) {
    CompleteCheckpoint complete{4, Metrics{{"loss", 0.25}}, {}};
    for (int rank = 0; rank < num_writers; ++rank) complete.directories[rank] = shared().string();
    return storage.commit(complete).checkpoint.path();
  }
};

TEST_F(CheckpointFiles, ComesBackAsItWasWhateverTheNumberOfWriters) {
  for (const int writers : {1, 2, 3, 7}) {
    for (const std::uint64_t limit : {0, 60'000}) {
      for (const bool snapshots : {false, true}) {
        config_.name = "run" + std::to_string(writers) + "_" + std::to_string(limit) + (snapshots ? "s" : "");
        RunStorage storage{config_};
        const State state{static_cast<std::uint64_t>(writers), writers, 20, limit};
        const CheckpointReader reader{save(storage, state, writers, snapshots)};
        EXPECT_EQ(state.difference(reader), "") << writers << " writers, limit " << limit << ", snapshots " << snapshots;
        EXPECT_NO_THROW(reader.verify());
        EXPECT_THAT(verify_checkpoint(reader.directory()), testing::IsEmpty());
        EXPECT_EQ(reader.manifest().num_writers, writers);
        EXPECT_EQ(reader.manifest().step, writers * 10);
        EXPECT_EQ(reader.manifest().metrics, (Metrics{{"loss", 0.25}}));
      }
    }
  }
}

TEST_F(CheckpointFiles, IsASafetensorsFileWhoseDataBeginAtAPage) {
  RunStorage storage{config_};
  const State state{5, 3};
  const auto directory = save(storage, state, 3);
  const SafetensorsFile file{directory / "model.safetensors"};
  ASSERT_EQ(file.tensors().size(), state.model().size());
  EXPECT_EQ(file.metadata(), (std::map<std::string, std::string>{{"format", "pt"}}));
  for (std::size_t i = 0; i < state.model().size(); ++i) {
    const auto* entry = file.find(state.model()[i].name);
    ASSERT_TRUE(entry);
    EXPECT_EQ(entry->shape, state.model()[i].shape);
    EXPECT_TRUE(std::ranges::equal(file.bytes(*entry), std::as_bytes(std::span{state.value(i)})));
  }
  const CheckpointReader reader{directory};
  for (const auto& tensor : reader.manifest().tensors) EXPECT_GE(tensor.begin, 4096u);
  EXPECT_EQ(reader.manifest().find_tensor("model", "scalar")->begin % 4096, 0u);
}

TEST_F(CheckpointFiles, SplitsAsHuggingFaceDoes) {
  RunStorage storage{config_};
  const State state{6, 2, 1, 60'000};  // embed has 110,340 bytes
  const auto directory = save(storage, state, 2);
  std::ifstream in{directory / "model.safetensors.index.json"};
  const auto index = nlohmann::json::parse(in);
  EXPECT_EQ(index["weight_map"]["embed"], "model-00001-of-00002.safetensors");  // larger than the limit: alone, and before the open one
  EXPECT_EQ(index["weight_map"]["mask"], "model-00002-of-00002.safetensors");
  EXPECT_EQ(index["metadata"]["total_size"], 129 * 64 * 4 + 64 * 4 + 613 * 90 * 2 + 8 + 1001);
  EXPECT_EQ(SafetensorsFile{directory / "model-00001-of-00002.safetensors"}.tensors().size(), 1u);
}

TEST_F(CheckpointFiles, ReadsRangesThatBeginAndEndAnywhere) {
  RunStorage storage{config_};
  const State state{7, 3, 60};  // tensors of several segments
  const CheckpointReader reader{save(storage, state, 3)};
  const auto& whole = state.value(2);
  ASSERT_GT(whole.size(), 6u << 20);
  std::string a(1, 0), b(5'000'001, 0), c(whole.size() - 3, 0), d(whole.size(), 0);
  const auto into = [](std::string& text) { return std::as_writable_bytes(std::span{text}); };
  reader.read("model",
              std::vector<ReadRange>{
                  {"embed", whole.size() - 1, into(a)}, {"embed", 1'000'003, into(b)}, {"embed", 3, into(c)}, {"embed", 0, into(d)}});
  EXPECT_EQ(a, whole.substr(whole.size() - 1));
  EXPECT_EQ(b, whole.substr(1'000'003, b.size()));
  EXPECT_EQ(c, whole.substr(3));
  EXPECT_EQ(d, whole);
  EXPECT_EQ(failure_of([&] { reader.read("model", std::vector<ReadRange>{{"embed", 4, into(d)}}); }).code(), Errc::InvalidArgument);
  EXPECT_EQ(failure_of([&] { reader.read("model", std::vector<ReadRange>{{"none", 0, into(a)}}); }).code(), Errc::NotFound);
  EXPECT_EQ(failure_of([&] { reader.read("models", std::vector<ReadRange>{{"embed", 0, into(a)}}); }).code(), Errc::NotFound);
  EXPECT_EQ(failure_of([&] { (void)reader.rank_state(3); }).code(), Errc::NotFound);
}

TEST_F(CheckpointFiles, KeepsTheUsersFilesBesideItsOwn) {
  RunStorage storage{config_};
  const State state{8, 2};
  for (int rank = 0; rank < 2; ++rank) write_part(shared(), state.part(rank));
  std::ofstream{shared() / "config.json"} << "{}";
  fs::create_directories(shared() / "tokenizer");
  std::ofstream{shared() / "tokenizer" / "vocab.txt"} << "a\nb\n";
  std::ofstream{shared() / "empty"};
  const CheckpointReader reader{commit(storage, 2)};
  ASSERT_TRUE(reader.manifest().find_file("tokenizer/vocab.txt"));
  EXPECT_EQ(reader.manifest().find_file("tokenizer/vocab.txt")->size, 4u);
  EXPECT_EQ(reader.manifest().find_file("empty")->size, 0u);
  EXPECT_NO_THROW(reader.verify());
  std::fstream{reader.directory() / "tokenizer" / "vocab.txt", std::ios::in | std::ios::out} << "b";
  EXPECT_THAT(failure_of([&] { reader.verify(); }).what(), HasSubstr("tokenizer/vocab.txt"));
}

TEST_F(CheckpointFiles, OpensAPlainHuggingFaceDirectory) {
  RunStorage storage{config_};
  const State state{9, 2, 1, 60'000};
  const auto directory = save(storage, state, 2);
  for (const char* name : {"manifest.troupe", "manifest.json", "rank_00000.troupe", "rank_00001.troupe"}) fs::remove(directory / name);
  const CheckpointReader reader{directory};
  EXPECT_FALSE(reader.has_manifest());
  EXPECT_FALSE(reader.state());
  EXPECT_EQ(reader.tensors("model").size(), state.model().size());
  std::string embed(state.value(2).size(), 0);
  reader.read("model", std::vector<ReadRange>{{"embed", 0, std::as_writable_bytes(std::span{embed})}});
  EXPECT_EQ(embed, state.value(2));
  std::ofstream{directory / "model.safetensors.index.json"} << R"({"weight_map": {"w": "../../model.safetensors"}})";
  EXPECT_THAT(failure_of([&] { CheckpointReader{directory}; }).what(), HasSubstr("no file beside it"));
  EXPECT_EQ(failure_of([&] { CheckpointReader{root_ / "none"}; }).code(), Errc::FileNotFound);
}

TEST_F(CheckpointFiles, RefusesLinksAndDevices) {
  RunStorage storage{config_};
  const State state{10, 1};
  write_part(shared(), state.part(0));
  fs::create_symlink("/etc/passwd", shared() / "secrets");
  EXPECT_THAT(failure_of([&] { commit(storage, 1); }).what(), AllOf(HasSubstr("secrets"), HasSubstr("symbolic link")));
  fs::remove(shared() / "secrets");
  const auto directory = commit(storage, 1);
  fs::create_directory_symlink(directory, root_ / "latest");
  EXPECT_EQ(state.difference(CheckpointReader{root_ / "latest"}), "");  // the directory itself may be one
  fs::rename(directory / "model.safetensors", root_ / "elsewhere");
  fs::create_symlink(root_ / "elsewhere", directory / "model.safetensors");
  const auto failure = failure_of([&] { CheckpointReader{directory}; });
  EXPECT_EQ(failure.code(), Errc::FileCorrupt);
  EXPECT_THAT(failure.what(), AllOf(HasSubstr("model.safetensors"), HasSubstr("links are not followed")));
  EXPECT_EQ(failure_of([&] { write_part(directory, state.part(0)); }).code(), Errc::StorageUnavailable);
}

TEST_F(CheckpointFiles, ReusesASnapshotsMemory) {
  const State state{11, 1, 60};
  SnapshotPool pool;
  pool.reserve(PartSnapshot{state.part(0), pool}.bytes());
  const auto held = pool.bytes();
  EXPECT_GT(held, 9u << 20);
  for (int i = 0; i < 3; ++i) {
    const PartSnapshot snapshot{state.part(0), pool};
    EXPECT_EQ(pool.bytes(), held);
  }
  const PartSnapshot a{state.part(0), pool}, b{state.part(0), pool};
  EXPECT_EQ(pool.bytes(), held);  // one was reserved while another was held
  const PartSnapshot c{state.part(0), pool};
  EXPECT_EQ(pool.bytes(), held / 2 * 3);
}

TEST_F(CheckpointFiles, HoldsWhatTheMemoryWasWhenTheSnapshotWasTaken) {
  RunStorage storage{config_};
  const State state{12, 1, 20};
  SnapshotPool pool;
  auto part = state.part(0);
  std::vector<std::string> memory;
  for (auto& file : part.files) {
    for (auto& range : file.mine) memory.emplace_back(reinterpret_cast<const char*>(range.bytes.data()), range.bytes.size());
  }
  std::size_t i = 0;
  for (auto& file : part.files) {
    for (auto& range : file.mine) range.bytes = std::as_bytes(std::span{memory[i++]});
  }
  PartSnapshot snapshot{part, pool};
  for (auto& bytes : memory) std::ranges::fill(bytes, 'x');
  snapshot.write(shared());
  EXPECT_EQ(state.difference(CheckpointReader{commit(storage, 1)}), "");
}

// ---- on a simulated one --------------------------------------------------------------------------------------------

class CheckpointParts : public testing::Test {
 protected:
  SimulatedFileSystem disk_;
  fs::path run_ = "/run", shared_ = "/run/.staging/s";

  void SetUp() override { disk_.make_directories("/run/.staging"); }
  void commit(std::vector<fs::path> directories) {
    CompleteCheckpoint complete{0, {}, {}};
    for (std::size_t i = 0; i < directories.size(); ++i) complete.directories[static_cast<int>(i)] = directories[i].string();
    (void)detail::commit_checkpoint(disk_, run_, complete);
  }
  std::string refused(std::vector<fs::path> directories) {
    const auto failure = failure_of([&] { commit(std::move(directories)); });
    EXPECT_EQ(failure.code(), Errc::InvalidArgument);
    EXPECT_FALSE(disk_.kind("/run/checkpoint_000000"));
    return failure.what();
  }
};

TEST_F(CheckpointParts, NamesTheRankThatIsMissing) {
  const State state{1, 3};
  for (const int rank : {0, 2}) write_part(shared_, state.part(rank), disk_);
  EXPECT_THAT(refused({shared_, shared_, shared_}), HasSubstr("the part of rank 1 of 3 writers is missing"));
}

TEST_F(CheckpointParts, NamesBytesThatNobodyWrote) {
  const State state{1, 2};
  write_part(shared_, state.part(0), disk_);
  auto part = state.part(1);
  part.files[0].mine.erase(part.files[0].mine.begin());
  write_part(shared_, part, disk_);
  EXPECT_THAT(refused({shared_, shared_}), AllOf(HasSubstr("model.safetensors were written by no rank"), HasSubstr("bytes ")));
}

TEST_F(CheckpointParts, NamesRanksThatWroteTheSameBytes) {
  const State state{1, 2};
  write_part(shared_, state.part(0), disk_);
  auto part = state.part(1);
  part.files[0].mine.push_back(state.part(0).files[0].mine[2]);
  write_part(shared_, part, disk_);
  EXPECT_THAT(refused({shared_, shared_}), HasSubstr("of model.safetensors were written by ranks 0 and 1"));
}

TEST_F(CheckpointParts, RefusesPartsOfDifferentAttemptsAndModels) {
  const State state{1, 2};
  write_part(shared_, state.part(0), disk_);
  auto part = state.part(1);
  part.attempt = 2;
  write_part(shared_, part, disk_);
  EXPECT_THAT(refused({shared_, shared_}), HasSubstr("ranks 0 and 1 wrote in different attempts (1 and 2)"));
  write_part(shared_, State{1, 2, 2}.part(1), disk_);
  EXPECT_THAT(refused({shared_, shared_}), HasSubstr("different tensors, shapes"));
}

TEST_F(CheckpointParts, NeedsOneDirectoryForSharedFiles) {
  const State state{1, 2};
  write_part("/run/.staging/a", state.part(0), disk_);
  write_part("/run/.staging/b", state.part(1), disk_);
  const auto failure = failure_of([&] { commit({"/run/.staging/a", "/run/.staging/b"}); });
  EXPECT_EQ(failure.code(), Errc::AlreadyExists);
  EXPECT_THAT(failure.what(), HasSubstr("ranks 0 and 1 both wrote model.safetensors"));
}

TEST_F(CheckpointParts, RefusesRangesThatAreNoGood) {
  const State state{1, 1};
  const auto refused_part = [&](auto&& change) {
    auto part = state.part(0);
    change(part);
    const auto failure = failure_of([&] { write_part(shared_, part, disk_); });
    EXPECT_EQ(failure.code(), Errc::InvalidArgument);
    EXPECT_FALSE(disk_.kind(shared_));
    return std::string(failure.what());
  };
  EXPECT_THAT(refused_part([](auto& p) { p.files[0].mine.push_back(p.files[0].mine[0]); }),
              HasSubstr("of model.safetensors are given twice"));
  EXPECT_THAT(refused_part([](auto& p) { p.files[0].mine[0].begin = 8; }), HasSubstr("tensor 'layer.0.weight'"));
  EXPECT_THAT(refused_part([](auto& p) { p.files[0].mine[0].begin = ~std::uint64_t{0} - 3; }), HasSubstr("tensor 'layer.0.weight'"));
  EXPECT_THAT(refused_part([](auto& p) { p.files[0].mine[0].tensor = 99; }), HasSubstr("there is no number 99"));
  EXPECT_THAT(refused_part([](auto& p) { p.files[0].tensors[1].name = "embed"; }), HasSubstr("'embed' is there twice"));
  EXPECT_THAT(refused_part([](auto& p) {
                p.files[0].tensors[0].shape = {1ULL << 62, 1ULL << 62};
              }),
              HasSubstr("size that no file can have"));
  EXPECT_THAT(refused_part([](auto& p) { p.files[0].stem = "../model"; }), HasSubstr("no good as a file name"));
  EXPECT_THAT(refused_part([](auto& p) { p.files[1].stem = "model"; }), HasSubstr("'model' is there twice"));
  EXPECT_THAT(refused_part([](auto& p) { p.rank = 1; }), HasSubstr("rank 1"));
  EXPECT_THAT(refused_part([](auto& p) { p.files[0].tensors[0].name = "\xFF"; }), HasSubstr("not UTF-8"));
}

TEST_F(CheckpointParts, RefusesManifestsThatLie) {
  const State state{1, 1};
  write_part(shared_, state.part(0), disk_);
  commit({shared_});
  const fs::path file = "/run/checkpoint_000000/manifest.troupe";
  const auto good = CheckpointReader{file.parent_path(), disk_}.manifest();
  const auto refused_manifest = [&](auto&& change) {
    auto manifest = good;
    change(manifest);
    disk_.bytes(file) = to_bytes(manifest);
    const auto failure = failure_of([&] { CheckpointReader{file.parent_path(), disk_}; });
    EXPECT_EQ(failure.code(), Errc::FileCorrupt);
    return std::string(failure.what());
  };
  const auto find = [](Manifest& m) -> FileRecord& { return *std::ranges::find(m.files, "model.safetensors", &FileRecord::name); };
  EXPECT_THAT(refused_manifest([](auto& m) { m.files[0].name = "../manifest.json"; }), HasSubstr("no plain path"));
  EXPECT_THAT(refused_manifest([](auto& m) { m.files[0].name = "/etc/passwd"; }), HasSubstr("no plain path"));
  EXPECT_THAT(refused_manifest([&](auto& m) { find(m).size = ~std::uint64_t{0}; }), HasSubstr("model.safetensors"));
  EXPECT_THAT(refused_manifest([&](auto& m) { find(m).segments[0].length = 0xFFFFFFFF; }), HasSubstr("do not tile"));
  EXPECT_THAT(refused_manifest([&](auto& m) { find(m).segments[0].digest ^= 1; }), HasSubstr("digest of model.safetensors"));
  EXPECT_THAT(refused_manifest([&](auto& m) { find(m).writers.clear(); }), HasSubstr("no writer of model.safetensors"));
  EXPECT_THAT(refused_manifest([](auto& m) { m.tensors[0].begin = ~std::uint64_t{0}; }), HasSubstr("beyond the end"));
  EXPECT_THAT(refused_manifest([](auto& m) { m.tensors[0].file = 77; }), HasSubstr("does not name"));
  EXPECT_THAT(refused_manifest([](auto& m) { m.attempt = 9; }), HasSubstr("rank_00000.troupe"));
  EXPECT_THAT(refused_manifest([](auto& m) { std::swap(m.files[0], m.files[1]); }), HasSubstr("in order"));
  auto bytes = to_bytes(good);
  disk_.bytes(file) = bytes.substr(0, bytes.size() - 1);
  EXPECT_THAT(failure_of([&] { CheckpointReader{file.parent_path(), disk_}; }).what(), HasSubstr("manifest.troupe: is damaged"));
}

TEST_F(CheckpointParts, UsesMemoryAgainOnlyWhenItsWriteIsDone) {
  const State state{3, 2, 160};  // more segments than slots, and this disk writes as late as it can
  for (int rank = 0; rank < 2; ++rank) write_part(shared_, state.part(rank), disk_);
  commit({shared_, shared_});
  EXPECT_EQ(state.difference(CheckpointReader{"/run/checkpoint_000000", disk_}), "");
}

TEST_F(CheckpointParts, TakesAnOlderAcknowledgementBackBeforeItWrites) {
  const State state{1, 1};
  write_part(shared_, state.part(0), disk_);
  disk_.fail_at(8, ENOSPC);
  EXPECT_EQ(failure_of([&] { write_part(shared_, State{2, 1}.part(0), disk_); }).code(), Errc::StorageUnavailable);
  EXPECT_FALSE(disk_.kind(shared_ / rank_file_name(0)));
}

}  // namespace
}  // namespace troupe
