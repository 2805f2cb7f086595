#include <troupe/errors.hpp>
#include <troupe/gguf_convert.hpp>
#include <troupe/safetensors_stream.hpp>

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <digest.hpp>
#include <fstream>
#include <functional>
#include <nlohmann/json.hpp>

#include "../fuzz/targets.hpp"

namespace troupe {
namespace {

namespace fs = std::filesystem;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::StartsWith;
using Json = nlohmann::json;

struct Scratch {
  fs::path path = [] {
    std::string name = (fs::temp_directory_path() / "gguf_XXXXXX").string();
    return fs::path{::mkdtemp(name.data())};
  }();
  ~Scratch() { fs::remove_all(path); }
};

fs::path fixture(const std::string& name) { return fs::path{TROUPE_TEST_GGUF} / name; }

std::string read_text(const fs::path& file) {
  std::ifstream in{file, std::ios::binary};
  return {std::istreambuf_iterator<char>{in}, {}};
}

std::string failure_of(const std::function<void()>& act) {
  try {
    act();
  } catch (const Failure& failure) {
    return std::string(name(failure.code())) + " " + failure.what();
  }
  return "";
}

GgufHeader parse(const std::string& file) { return parse_gguf(std::as_bytes(std::span{file}), "a.gguf"); }

std::map<std::string, std::string> bytes_by_name(const fs::path& file) {
  const SafetensorsFile opened{file};
  std::map<std::string, std::string> out;
  for (const auto& entry : opened.tensors()) {
    const auto bytes = opened.bytes(entry);
    out[entry.name] = std::string(name(entry.dtype)) + std::string(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  }
  return out;
}

/// The fixture with the first `from` replaced by `to`, as long.
std::string changed(const std::string& fixture_name, const std::string& from, const std::string& to) {
  auto file = read_text(fixture(fixture_name));
  const auto at = file.find(from);
  EXPECT_NE(at, std::string::npos);
  return file.replace(at, from.size(), to);
}

std::string refusal(const std::string& bytes) {
  const Scratch scratch;
  std::ofstream{scratch.path / "m.gguf", std::ios::binary} << bytes;
  auto text = failure_of([&] { convert_gguf(scratch.path / "m.gguf", scratch.path / "out"); });
  EXPECT_EQ(std::distance(fs::directory_iterator{scratch.path}, {}), 1) << "something was left behind";
  return text;
}

TEST(Gguf, DequantizesEveryTypeToItsReferencesBits) {
  const GgufFile file{fixture("types.gguf")};
  const SafetensorsFile expected{fixture("types.safetensors")};
  ASSERT_EQ(file.header().tensors.size(), 8U);
  for (const auto& tensor : file.header().tensors) {
    EXPECT_EQ(tensor.name, name(tensor.type));
    EXPECT_THAT(tensor.shape, ElementsAre(3, 64));
    std::vector<float> values(tensor.elements());
    dequantize(tensor.type, file.bytes(tensor), values);
    const auto* entry = expected.find(tensor.name);
    ASSERT_NE(entry, nullptr);
    EXPECT_EQ(std::memcmp(values.data(), expected.bytes(*entry).data(), values.size() * 4), 0) << tensor.name;
  }
}

TEST(Gguf, ReadsEveryHalf) {
  std::string bytes(65536 * 2, '\0');
  for (unsigned i = 0; i < 65536; ++i) std::memcpy(bytes.data() + 2 * i, &i, 2);
  std::vector<float> values(65536);
  dequantize(GgufType::F16, std::as_bytes(std::span{bytes}), values);
  for (unsigned i = 0; i < 65536; ++i) {
    _Float16 half;
    std::memcpy(&half, bytes.data() + 2 * i, 2);
    const auto expected = static_cast<float>(half);
    if (expected == expected) ASSERT_EQ(std::memcmp(&values[i], &expected, 4), 0) << i;
    else ASSERT_NE(values[i], values[i]) << i;
  }
}

TEST(Gguf, ConvertsALlamaToHuggingFacesNamesAndRotaryOrder) {
  const Scratch scratch;
  std::uint64_t told = 0;
  const auto made = convert_gguf(fixture("llama.gguf"), scratch.path / "a" / "m",
                                 {.dtype = SafetensorsDtype::F32, .progress = [&](std::uint64_t done, std::uint64_t total) { told = done == total ? done : told; }});
  EXPECT_EQ(made.num_params * 4, told);
  EXPECT_THAT(made.files, ElementsAre("config.json", "generation_config.json", "merges.txt", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "vocab.json"));
  EXPECT_EQ(bytes_by_name(scratch.path / "a/m/model.safetensors"), bytes_by_name(fixture("llama.safetensors")));
  const auto config = Json::parse(read_text(scratch.path / "a/m/config.json"));
  EXPECT_EQ(config["rope_theta"], 12345.5);
  EXPECT_EQ(config["rms_norm_eps"], 1e-5);
  EXPECT_EQ(config["tie_word_embeddings"], true);
  EXPECT_EQ(config["num_key_value_heads"], 1);
  EXPECT_EQ(config["eos_token_id"], 2);
  EXPECT_EQ(config["torch_dtype"], "float32");
  EXPECT_EQ(Json::parse(read_text(scratch.path / "a/m/tokenizer.json")), Json::parse(read_text(fixture("tokenizer.json"))));
  const auto tokenizer = Json::parse(read_text(scratch.path / "a/m/tokenizer_config.json"));
  EXPECT_EQ(tokenizer["bos_token"], "<|im_start|>");
  EXPECT_EQ(tokenizer["chat_template"], "{{ messages }} ü");
}

TEST(Gguf, ConvertsBiasesAHeadAndASentencePieceModel) {
  const Scratch scratch;
  convert_gguf(fixture("spm.gguf"), scratch.path / "m", {.dtype = SafetensorsDtype::F32});
  EXPECT_EQ(bytes_by_name(scratch.path / "m/model.safetensors"), bytes_by_name(fixture("spm.safetensors")));
  EXPECT_EQ(read_text(scratch.path / "m/tokenizer.model"), read_text(fixture("spm.model")));
  EXPECT_EQ(Json::parse(read_text(scratch.path / "m/config.json"))["attention_bias"], true);
}

TEST(Gguf, WritesShardsAndTheirIndex) {
  const Scratch scratch;
  const auto made = convert_gguf(fixture("llama.gguf"), scratch.path / "m", {.dtype = SafetensorsDtype::F32, .max_shard_bytes = 40'000, .tokenizer = false});
  EXPECT_THAT(made.files, ElementsAre("config.json", "generation_config.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json"));
  const auto index = Json::parse(read_text(scratch.path / "m/model.safetensors.index.json"));
  EXPECT_EQ(index["metadata"]["total_size"], made.num_params * 4);
  std::map<std::string, std::string> all;
  for (const auto& [tensor, file] : index["weight_map"].items()) all[tensor] = bytes_by_name(scratch.path / "m" / std::string(file)).at(tensor);
  EXPECT_EQ(all, bytes_by_name(fixture("llama.safetensors")));
}

TEST(Gguf, RefusesWhatIsThere) {
  const Scratch scratch;
  EXPECT_THAT(failure_of([&] { convert_gguf(fixture("llama.gguf"), scratch.path); }), StartsWith("AlreadyExists " + scratch.path.string()));
}

TEST(Gguf, NamesWhatItDoesNotRead) {
  EXPECT_THAT(failure_of([] { GgufFile file{fixture("q4k.gguf")}; }), AllOf(StartsWith("Unsupported "), HasSubstr("q4k.gguf: tensor 'odd' has elements of Q4_K; F32")));
  EXPECT_THAT(failure_of([] { parse(std::string("GGUF\1\0\0\0", 8)); }), HasSubstr("a.gguf: has version 1; 2 and 3 are read"));
  EXPECT_THAT(failure_of([] { parse(std::string("GGUF\0\0\0\3", 8)); }), HasSubstr("big-endian"));
  EXPECT_THAT(failure_of([] { parse("PK\3\4"); }), HasSubstr("does not begin with GGUF"));
  EXPECT_THAT(failure_of([] { GgufFile file{"/no/such.gguf"}; }), StartsWith("FileNotFound /no/such.gguf"));
  EXPECT_THAT(refusal(changed("llama.gguf", std::string("llama", 5) + '\x11', std::string("qwen2") + '\x11')), HasSubstr("general.architecture is 'qwen2'"));
  EXPECT_THAT(refusal(changed("llama.gguf", "smollm", "smollx")), AllOf(StartsWith("Unsupported"), HasSubstr("tokenizer.ggml.pre is 'smollx'")));
}

TEST(Gguf, NamesTensorsThatDoNotFit) {
  EXPECT_THAT(refusal(changed("llama.gguf", "blk.0.attn_q.weight", "blk.0.attn_x.weight")), HasSubstr("tensor 'blk.0.attn_q.weight' is missing"));
  EXPECT_THAT(refusal(changed("llama.gguf", "output_norm.weight", "output_norn.weight")), HasSubstr("'output_norm.weight' is missing"));
  auto more_heads = read_text(fixture("llama.gguf"));
  const std::string key = "llama.attention.head_count_kv";
  more_heads[more_heads.find(key) + key.size() + 4] = 2;
  EXPECT_THAT(refusal(more_heads), HasSubstr("tensor 'blk.0.attn_k.weight' has shape [16, 32], the metadata say [32, 32]"));
}

TEST(Gguf, EveryTruncationIsRefused) {
  const auto file = read_text(fixture("types.gguf"));
  for (std::size_t length = 0; length < file.size(); ++length) {
    const auto cut = file.substr(0, length);
    // The last tensor's bytes are followed by padding, which nothing needs.
    if (length + 32 > file.size() && failure_of([&] { parse(cut); }).empty()) continue;
    EXPECT_THAT(failure_of([&] { parse(cut); }), StartsWith("FileCorrupt a.gguf: ")) << length;
  }
}

TEST(Gguf, EveryFlippedByteGivesAValueOrAFailure) {
  for (const auto* name : {"types.gguf", "q4k.gguf"}) {
    auto file = read_text(fixture(name));
    for (std::size_t at = 0; at < std::min<std::size_t>(file.size(), 900); ++at) {
      for (const int flip : {0x01, 0x80, 0xFF}) {
        const auto before = file[at];
        file[at] = static_cast<char>(before ^ flip);
        fuzz::gguf(reinterpret_cast<const std::uint8_t*>(file.data()), file.size());
        file[at] = before;
      }
    }
  }
}

/// All of SmolLM2 beside the checksums of llama.cpp's own package, where `tools/bootstrap smollm2` has fetched it.
TEST(Gguf, ConvertsSmolLm2BitForBit) {
  const char* cache = std::getenv("TROUPE_CACHE");
  const char* home = std::getenv("HOME");
  const fs::path model = fs::path{cache ? cache : std::string(home ? home : "") + "/.cache/troupe"} / "smollm2" / "model";
  if (!fs::exists(model / "model.safetensors")) GTEST_SKIP() << "there is no " << model << "; tools/bootstrap smollm2 makes it";
  const auto sums = Json::parse(read_text(fs::path{TROUPE_TEST_GOLDEN} / "d2_smollm2/gguf_checksums.json"));
  const SafetensorsFile file{model / "model.safetensors"};
  EXPECT_EQ(file.tensors().size(), sums.size());
  for (const auto& entry : file.tensors()) {
    char hex[17];
    (void)std::snprintf(hex, sizeof hex, "%016llx", static_cast<unsigned long long>(digest_of(std::span<const std::byte>{file.bytes(entry)})));
    EXPECT_EQ(sums.at(entry.name).at(entry.dtype == SafetensorsDtype::BF16 ? 1 : 0), hex) << entry.name;
  }
}

TEST(SafetensorsStream, WritesTheSameBytesAsTheWholeWriter) {
  const Scratch scratch;
  const std::vector<float> a{1, 2, 3};
  const std::vector<std::uint16_t> b{4, 5};
  const auto bytes = [](const auto& values) { return std::as_bytes(std::span{values}); };
  write_safetensors_file(scratch.path / "whole", {{"b", SafetensorsDtype::BF16, {2}, bytes(b)}, {"a", SafetensorsDtype::F32, {3}, bytes(a)}}, {{"format", "pt"}});
  write_safetensors_stream(
      scratch.path / "stream", {{"b", SafetensorsDtype::BF16, {2}}, {"a", SafetensorsDtype::F32, {3}}},
      [&](const SafetensorsSpec& spec, std::span<std::byte> out) { std::ranges::copy(spec.name == "a" ? bytes(a) : bytes(b), out.begin()); }, {{"format", "pt"}});
  EXPECT_EQ(read_text(scratch.path / "whole"), read_text(scratch.path / "stream"));
  EXPECT_THROW(write_safetensors_stream(scratch.path / "none", {{"a", SafetensorsDtype::F32, {3}}}, [](auto&, auto) { throw std::runtime_error{"x"}; }), std::runtime_error);
  EXPECT_FALSE(fs::exists(scratch.path / "none"));
  EXPECT_EQ(std::distance(fs::directory_iterator{scratch.path}, {}), 2);
}

}  // namespace
}  // namespace troupe
