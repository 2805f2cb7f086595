#include <ATen/core/Tensor.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/full.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iterator>
#include <nlohmann/json.hpp>
#include <troupe/errors.hpp>
#include <troupe/tensor_files.hpp>

namespace troupe {
namespace {

namespace fs = std::filesystem;

fs::path golden() {
  const char* const other = std::getenv("TROUPE_GOLDEN");
  return other ? other : TROUPE_TEST_GOLDEN;
}

std::string read_file(const fs::path& file) {
  std::ifstream in{file, std::ios::binary};
  return {std::istreambuf_iterator<char>{in}, {}};
}

void write_file(const fs::path& file, const std::string& text) {
  std::ofstream{file, std::ios::binary} << text;
}

struct Scratch {
  fs::path path = [] {
    std::string name = (fs::temp_directory_path() / "tensor_files_XXXXXX").string();
    return fs::path{::mkdtemp(name.data())};
  }();
  ~Scratch() { fs::remove_all(path); }
};

std::string failure_of(const std::function<void()>& act) {
  try {
    act();
  } catch (const Failure& failure) {
    return std::string(name(failure.code())) + " " + failure.what();
  }
  return "nothing was thrown";
}

std::string hex(const at::Tensor& tensor) {
  std::string out;
  const auto* const bytes = static_cast<const unsigned char*>(tensor.const_data_ptr());
  for (std::size_t i = 0; i < tensor.nbytes(); ++i) {
    constexpr char digits[] = "0123456789abcdef";
    out += digits[bytes[i] >> 4];
    out += digits[bytes[i] & 15];
  }
  return out;
}

TEST(safetensors_golden, EveryDtypeHasTheReferencesShapeAndBytes) {
  const auto expected = nlohmann::json::parse(read_file(golden() / "f_safetensors/verdicts.json"))
                            .at("valid_all_dtypes_tensors");
  const auto tensors =
      read_safetensors(golden() / "f_safetensors/files/valid_all_dtypes.safetensors");
  EXPECT_EQ(tensors.size(), expected.size());
  for (const auto& [name, want] : expected.items()) {
    ASSERT_TRUE(tensors.contains(name)) << name;
    EXPECT_EQ(tensors.at(name).sizes().vec(), want.at("shape").get<std::vector<std::int64_t>>())
        << name;
    EXPECT_EQ(hex(tensors.at(name)), want.at("bytes_hex")) << name;
  }
}

TEST(safetensors_golden, WritesByteForByteWhatTheReferenceWrote) {
  const Scratch scratch;
  const auto original = golden() / "a_tiny_bert/model.safetensors";
  const auto tensors = read_safetensors(original);
  write_safetensors(scratch.path / "copy", {tensors.begin(), tensors.end()});
  EXPECT_EQ(read_file(scratch.path / "copy"), read_file(original));
}

TEST(safetensors_tensors, OutliveTheFileAndDoNotWriteToIt) {
  const Scratch scratch;
  const auto file = scratch.path / "t";
  write_safetensors(file, {{"a", at::arange(6).reshape({2, 3})}});
  auto tensors = read_safetensors(file);
  auto a = tensors.at("a");
  tensors.clear();
  a.add_(1);
  EXPECT_EQ(a.sum().item<std::int64_t>(), 21);
  fs::remove(file);
  EXPECT_EQ(a.sum().item<std::int64_t>(), 21);
}

TEST(safetensors_tensors, StridedTensorsAreWrittenAsTheyRead) {
  const Scratch scratch;
  const auto a = at::arange(6).reshape({2, 3}).t();
  write_safetensors(scratch.path / "t", {{"a", a}});
  EXPECT_TRUE(read_safetensors(scratch.path / "t").at("a").equal(a));
}

/// Two shards and an index, as save_pretrained leaves them.
void write_shards(const fs::path& directory) {
  write_safetensors(directory / "model-1.safetensors", {{"a", at::full({2}, 1.0)}});
  write_safetensors(directory / "model-2.safetensors", {{"b", at::full({3}, 2.0)}});
  write_file(
      directory / "model.safetensors.index.json",
      R"({"metadata":{},"weight_map":{"a":"model-1.safetensors","b":"model-2.safetensors"}})");
}

TEST(safetensors_directory, ReadsShardsThroughTheIndex) {
  const Scratch scratch;
  write_shards(scratch.path);
  const auto tensors = read_model_directory(scratch.path);
  ASSERT_EQ(tensors.size(), 2U);
  EXPECT_EQ(tensors.at("b").sum().item<double>(), 6.0);
}

TEST(safetensors_directory, RefusesAnIndexThatLeavesTheDirectory) {
  const Scratch scratch;
  for (const auto* const shard :
       {R"("../x")", R"("/etc/passwd")", R"("a/b")", R"("..")", R"("")", "17", R"("a\u0000b")"}) {
    write_file(scratch.path / "model.safetensors.index.json",
               R"({"weight_map":{"a":)" + std::string(shard) + "}}");
    const auto text = failure_of([&] { (void)read_model_directory(scratch.path); });
    EXPECT_TRUE(text.starts_with("FileCorrupt") && text.find("tensor 'a'") != std::string::npos)
        << shard << ": " << text;
  }
}

TEST(safetensors_directory, NamesWhatIsMissing) {
  const Scratch scratch;
  EXPECT_NE(failure_of([&] {
              (void)read_model_directory(scratch.path);
            }).find("neither model.safetensors"),
            std::string::npos);
  EXPECT_TRUE(failure_of([&] {
                (void)read_model_directory(scratch.path / "x");
              }).starts_with("FileNotFound"));
  write_shards(scratch.path);
  write_safetensors(scratch.path / "model-2.safetensors", {{"c", at::full({3}, 2.0)}});
  EXPECT_NE(failure_of([&] { (void)read_model_directory(scratch.path); }).find("lacks tensor 'b'"),
            std::string::npos);
  fs::remove(scratch.path / "model-2.safetensors");
  EXPECT_TRUE(
      failure_of([&] { (void)read_model_directory(scratch.path); }).starts_with("FileNotFound"));
  write_file(scratch.path / "model.safetensors.index.json", "[");
  EXPECT_TRUE(
      failure_of([&] { (void)read_model_directory(scratch.path); }).starts_with("FileCorrupt"));
}

}  // namespace
}  // namespace troupe
