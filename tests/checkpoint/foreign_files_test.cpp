// What torch, Accelerate, DeepSpeed and torch.distributed.checkpoint wrote
// (make_foreign_fixtures.py): every tensor's bytes.
#include "foreign_helpers.hpp"

namespace troupe {
namespace {

namespace fs = std::filesystem;
using ::testing::AllOf;
using testing::expect_tensor;
using testing::failure_of;
using testing::fixture;
using ::testing::HasSubstr;
using testing::Scratch;
using ::testing::StartsWith;

/// Every expected tensor "section/name" is there and has the same bytes; a section has no tensor
/// that is not expected.
void expect_sections(const ForeignCheckpoint& read, const fs::path& expected,
                     const std::vector<std::string>& complete) {
  const auto want = read_safetensors_contents(expected);
  ASSERT_FALSE(want.empty());
  std::map<std::string, std::size_t> counts;
  for (const auto& [key, tensor] : want) {
    const auto slash = key.find('/');
    const auto section = key.substr(0, slash);
    ASSERT_TRUE(read.sections.contains(section)) << section;
    const auto& tensors = read.sections.at(section).tensors;
    const auto found = tensors.find(key.substr(slash + 1));
    ASSERT_NE(found, tensors.end()) << key;
    expect_tensor(found->second, tensor, key);
    ++counts[section];
  }
  for (const auto& section : complete)
    EXPECT_EQ(read.sections.at(section).tensors.size(), counts[section]) << section;
}

void expect_all(const ForeignTensors& read, const fs::path& expected) {
  const auto want = read_safetensors_contents(expected);
  EXPECT_EQ(read.size(), want.size());
  for (const auto& [name, tensor] : want) {
    ASSERT_TRUE(read.contains(name)) << name;
    expect_tensor(read.at(name), tensor, name);
  }
}

TEST(ForeignFiles, EveryDtypeAndStrideOfTorch) {
  const auto read = read_torch_contents(fixture("dtypes.bin")).tensors;
  expect_all(read, fixture("dtypes.safetensors"));
  EXPECT_EQ(name(read.at("complex128").dtype), "complex128");
  EXPECT_FALSE(read.at("transposed").contiguous());
  EXPECT_EQ(read.at("transposed").storage.data(), read.at("rows").storage.data()) << "one storage";
}

TEST(ForeignFiles, AModulesStateDict) {
  expect_all(read_torch_contents(fixture("module.bin")).tensors, fixture("module.safetensors"));
}

TEST(ForeignFiles, AModelDirectoryInShards) {
  expect_all(read_model_weights(fixture("sharded_bin")), fixture("sharded_bin/expected"));
  EXPECT_EQ(read_any(fixture("sharded_bin")).found, "the weights of a Hugging Face directory");
}

TEST(ForeignFiles, WhatSavePretrainedWrites) {
  ASSERT_TRUE(fs::exists(fixture("pretrained/model.safetensors.index.json")));
  expect_all(read_model_weights(fixture("pretrained")), fixture("pretrained/expected"));
}

TEST(ForeignFiles, AcceleratesSaveState) {
  for (const auto* const name : {"save_state", "save_state_bin"}) {
    const auto read = read_any(fixture(name));
    EXPECT_EQ(read.format, ForeignFormat::SaveState);
    expect_sections(read, fixture(name) / "expected", {"model", "optimizer"});
    EXPECT_EQ(std::get<std::int64_t>(read.sections.at("scheduler").values.at("last_epoch")), 1)
        << name;
    EXPECT_NEAR(std::get<double>(read.sections.at("optimizer").values.at("param_groups.0.lr")),
                1e-3, 1e-12)
        << name;
    const auto& random = read.sections.at("random_states_0");
    EXPECT_EQ(random.tensors.at("numpy_random_seed.1").elements(), 624U) << name;
    EXPECT_EQ(std::get<std::int64_t>(random.values.at("random_state.0")), 3) << name;
    EXPECT_THAT(read.left_out, ::testing::IsEmpty());
  }
}

TEST(ForeignFiles, DeepSpeedsPartitionsAreJoined) {
  for (const auto& [name, stage] : {std::pair{"zero1", 1},
                                    {"zero2", 2},
                                    {"zero2_groups", 2},
                                    {"zero3", 3},
                                    {"zero3_groups", 3}}) {
    SCOPED_TRACE(name);
    const auto read = read_any(fixture(name));
    EXPECT_EQ(read.format, ForeignFormat::DeepSpeed);
    EXPECT_EQ(read.found, "a DeepSpeed ZeRO-" + std::to_string(stage) + " checkpoint of 2 ranks");
    expect_sections(read, fixture(name) / "expected", {"model"});
    EXPECT_EQ(std::get<std::int64_t>(read.sections.at("training").values.at("global_steps")), 2);
  }
}

TEST(ForeignFiles, AcceleratesSaveStateOverDeepSpeed) {
  const Scratch scratch;
  fs::copy(fixture("zero2/t"), scratch.path / "pytorch_model", fs::copy_options::recursive);
  testing::write_file(scratch.path / "latest", "pytorch_model");
  fs::copy(fixture("save_state/random_states_0.pkl"), scratch.path);
  const auto read = read_any(scratch.path);
  EXPECT_EQ(read.found,
            "a save_state directory of Accelerate with a DeepSpeed ZeRO-2 checkpoint of 2 ranks");
  expect_sections(read, fixture("zero2/expected"), {"model"});
  EXPECT_TRUE(read.sections.contains("random_states_0"));
}

TEST(ForeignFiles, DeepSpeedWithoutAllRanksIsRefused) {
  const Scratch scratch;
  fs::copy(fixture("zero2/t"), scratch.path, fs::copy_options::recursive);
  for (const auto& entry : fs::directory_iterator{scratch.path}) {
    if (entry.path().filename().string().find("zero_pp_rank_1_") != std::string::npos)
      fs::remove(entry.path());
  }
  EXPECT_THAT(failure_of([&] { (void)read_deepspeed(scratch.path); }),
              AllOf(StartsWith("FileNotFound"), HasSubstr("of 1 ranks, but was written by 2")));
  testing::write_file(scratch.path / "latest", "../../etc");
  fs::create_directory(scratch.path / "root");
  testing::write_file(scratch.path / "root" / "latest", "../t");
  EXPECT_THAT(failure_of([&] { (void)read_deepspeed(scratch.path / "root"); }),
              AllOf(StartsWith("FileCorrupt"), HasSubstr("latest")));
}

TEST(ForeignFiles, ADistributedCheckpoint) {
  const auto read = read_dcp(fixture("dcp"));
  expect_all(read.tensors, fixture("dcp/expected"));
  EXPECT_EQ(std::get<std::int64_t>(read.values.at("step")), 17);
  EXPECT_EQ(std::get<double>(read.values.at("note.lr")), 0.5);
  EXPECT_EQ(read_any(fixture("dcp")).format, ForeignFormat::Dcp);
}

TEST(ForeignFiles, FsdpShardsAsAccelerateWritesThem) {
  const auto read = read_any(fixture("fsdp"));
  EXPECT_EQ(read.found, "a save_state directory of Accelerate with FSDP shards");
  expect_sections(read, fixture("fsdp") / "expected", {"model", "optimizer"});
}

TEST(ForeignFiles, ADistributedCheckpointThatLacksAFileOrLeavesItsFolderIsRefused) {
  const Scratch scratch;
  fs::copy(fixture("dcp"), scratch.path, fs::copy_options::recursive);
  auto metadata = testing::read_file(scratch.path / ".metadata");
  const std::string name = "__0_0.distcp";
  auto outside = metadata;
  const auto at = outside.find(name);
  ASSERT_NE(at, std::string::npos);
  outside.replace(at, name.size(), "../etc/passw");
  testing::write_file(scratch.path / ".metadata", outside);
  EXPECT_THAT(failure_of([&] { (void)read_dcp(scratch.path); }),
              AllOf(StartsWith("FileCorrupt"), HasSubstr("a file beside .metadata")));
  testing::write_file(scratch.path / ".metadata", metadata);
  fs::resize_file(scratch.path / "__1_0.distcp", 100);
  EXPECT_THAT(
      failure_of([&] { (void)read_dcp(scratch.path); }),
      AllOf(StartsWith("FileCorrupt"), HasSubstr("__1_0.distcp"), HasSubstr("the file has 100")));
  fs::remove(scratch.path / "__1_0.distcp");
  EXPECT_THAT(failure_of([&] { (void)read_dcp(scratch.path); }), StartsWith("FileNotFound"));
}

TEST(ForeignFiles, NothingFoundSaysWhatWasLookedFor) {
  const Scratch scratch;
  EXPECT_THAT(failure_of([&] { (void)read_any(scratch.path); }),
              AllOf(StartsWith("FileNotFound"), HasSubstr("optimizer.bin (Accelerate)")));
  EXPECT_THAT(failure_of([&] { (void)read_any(scratch.path / "none"); }),
              HasSubstr("no such directory"));
}

TEST(ForeignFiles, AnIndexIsCheckedBeforeItIsFollowed) {
  EXPECT_EQ(parse_shard_index(R"({"weight_map":{"a":"x.bin"}})", "index").at("a"), "x.bin");
  for (const auto* const shard : {R"("../x")", R"("/x")", R"("a/b")", R"("..")", R"("")", "17"})
    EXPECT_THAT(failure_of([&] {
                  (void)parse_shard_index(R"({"weight_map":{"a":)" + std::string(shard) + "}}",
                                          "index");
                }),
                HasSubstr("tensor 'a'"))
        << shard;
  EXPECT_THAT(failure_of([&] { (void)parse_shard_index(std::string(100'000, '['), "index"); }),
              HasSubstr("nested deeper than 127"));
}

}  // namespace
}  // namespace troupe
