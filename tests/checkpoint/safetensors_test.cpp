#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iterator>
#include <troupe/errors.hpp>
#include <troupe/safetensors.hpp>

namespace troupe {
namespace {

namespace fs = std::filesystem;

/// A fresh directory, removed at the end.
struct Scratch {
  fs::path path = [] {
    std::string name = (fs::temp_directory_path() / "safetensors_XXXXXX").string();
    return fs::path{::mkdtemp(name.data())};
  }();
  ~Scratch() { fs::remove_all(path); }
};

std::string with_length(std::string header, const std::string& data) {
  std::string length(8, '\0');
  for (std::size_t i = 0; i < 8; ++i) length[i] = static_cast<char>(header.size() >> (8 * i));
  return length + std::move(header) + data;
}

bool accepts(const std::string& header, const std::string& data = "1234") {
  const auto bytes = with_length(header, data);
  try {
    (void)parse_safetensors(std::as_bytes(std::span{bytes}), "test");
    return true;
  } catch (const Failure& failure) {
    EXPECT_EQ(failure.code(), Errc::FileCorrupt);
    return false;
  }
}

std::string entry_with(const std::string& extra) {
  return R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4],"x":)" + extra + "}}";
}

Errc code_of(const std::function<void()>& act, std::string* text = nullptr) {
  try {
    act();
  } catch (const Failure& failure) {
    if (text) *text = failure.what();
    return failure.code();
  }
  return Errc::Ok;
}

std::string nested(char open, char close, int levels) {
  return std::string(static_cast<std::size_t>(levels), open) +
         std::string(static_cast<std::size_t>(levels), close);
}

// What safetensors 0.8.0 answered to the same headers (run by hand; it takes serde's other
// spellings).
TEST(safetensors, TakesWhatTheReferenceTakesBeyondTheGoldenFiles) {
  EXPECT_TRUE(accepts(R"({"a":["F32",[1],[0,4]]})"));
  EXPECT_FALSE(accepts(R"({"a":["F32",[1],[0,4],1]})"));
  EXPECT_FALSE(accepts(R"({"a":["F32",[1]]})"));
  EXPECT_TRUE(accepts(R"({"a":{"dtype":{"F32":null},"shape":[1],"data_offsets":[0,4]}})"));
  EXPECT_FALSE(accepts(R"({"a":{"dtype":{"F32":{}},"shape":[1],"data_offsets":[0,4]}})"));
  EXPECT_FALSE(
      accepts(R"({"a":{"dtype":{"F32":null,"F64":null},"shape":[1],"data_offsets":[0,4]}})"));
  EXPECT_TRUE(accepts(R"({"__metadata__":{"a":"1","a":"2"}})", ""));
  EXPECT_FALSE(accepts(R"({"__metadata__":null,"__metadata__":{}})", ""));
  EXPECT_FALSE(
      accepts(R"({"a":{"dtype":"XX","shape":[1],"data_offsets":[0,4]},"a":["F32",[1],[0,4]]})"));
}

TEST(safetensors, IgnoredFieldsMustBeJsonToo) {
  EXPECT_TRUE(accepts(entry_with(R"({"y":[1,{"z":-1.5e3}],"y":true})")));
  EXPECT_TRUE(accepts(entry_with("1e-999999")));
  EXPECT_FALSE(accepts(entry_with("1e400")));
  EXPECT_FALSE(accepts(entry_with("01")));
  EXPECT_FALSE(accepts(entry_with(R"("\ud800")")));
  EXPECT_FALSE(accepts(entry_with(R"("\u+123")")));
  EXPECT_TRUE(accepts(entry_with(nested('[', ']', 125))));
  EXPECT_FALSE(accepts(entry_with(nested('[', ']', 126))));
}

TEST(safetensors, SizesOverflowInTheReferencesOrder) {
  EXPECT_TRUE(accepts(R"({"a":["F32",[0,18446744073709551615,2],[0,0]]})", ""));
  EXPECT_FALSE(accepts(R"({"a":["F32",[18446744073709551615,2,0],[0,0]]})", ""));
  EXPECT_FALSE(accepts(R"({"a":["F32",[1],[-0,4]]})"));
}

TEST(safetensors, SubByteTypesMustFillBytes) {
  EXPECT_TRUE(accepts(R"({"a":["F4",[8],[0,4]]})"));
  EXPECT_TRUE(accepts(R"({"a":["F6_E2M3",[4],[0,3]]})", "123"));
  EXPECT_FALSE(accepts(R"({"a":["F4",[3],[0,1]]})", "1"));
}

TEST(safetensors, EveryPrefixOfAFileIsRefused) {
  const auto whole = with_length(
      R"({"__metadata__":{"k":"v"},"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})", "1234");
  for (std::size_t bytes = 0; bytes < whole.size(); ++bytes) {
    const std::vector<char> prefix(whole.begin(),
                                   whole.begin() + static_cast<std::ptrdiff_t>(bytes));
    EXPECT_EQ(code_of([&] { (void)parse_safetensors(std::as_bytes(std::span{prefix}), "prefix"); }),
              Errc::FileCorrupt)
        << bytes;
  }
}

TEST(safetensors, WritesAlignedSortedAndReadsBack) {
  const Scratch scratch;
  const auto file = scratch.path / "t.safetensors";
  const std::string bytes = "0123456789abcdef";
  const auto part = [&](std::size_t n) { return std::as_bytes(std::span{bytes}).first(n); };
  write_safetensors_file(file,
                         {{"z", SafetensorsDtype::U8, {3}, part(3)},
                          {"b", SafetensorsDtype::F32, {2}, part(8)},
                          {"a\xC3\xA9", SafetensorsDtype::F32, {}, part(4)},
                          {"i", SafetensorsDtype::I64, {0, 7}, part(0)}},
                         {{"format", "pt"}});
  const SafetensorsFile read{file};
  std::vector<std::string> order;
  for (const auto& t : read.tensors()) order.push_back(t.name);
  EXPECT_EQ(order, (std::vector<std::string>{"i", "a\xC3\xA9", "b", "z"}));
  EXPECT_EQ(read.metadata().at("format"), "pt");
  const auto found = read.bytes(*read.find("b"));
  EXPECT_EQ(reinterpret_cast<std::uintptr_t>(found.data()) % 4, 0U);
  EXPECT_EQ(std::memcmp(found.data(), bytes.data(), 8), 0);
  EXPECT_EQ(read.find("nobody"), nullptr);
}

TEST(safetensors, WritingToAMappedTensorLeavesTheFile) {
  const Scratch scratch;
  const auto file = scratch.path / "t.safetensors";
  const std::string bytes = "1234";
  write_safetensors_file(file, {{"a", SafetensorsDtype::U8, {4}, std::as_bytes(std::span{bytes})}});
  const SafetensorsFile first{file};
  first.bytes(*first.find("a"))[0] = std::byte{'X'};
  const SafetensorsFile second{file};
  EXPECT_EQ(second.bytes(*second.find("a"))[0], std::byte{'1'});
}

TEST(safetensors, ARefusedWriteLeavesTheOldFileAndNothingElse) {
  const Scratch scratch;
  const auto file = scratch.path / "t.safetensors";
  const std::string bytes = "1234";
  const auto data = std::as_bytes(std::span{bytes});
  write_safetensors_file(file, {{"a", SafetensorsDtype::U8, {4}, data}});
  std::string text;
  EXPECT_EQ(code_of(
                [&] {
                  write_safetensors_file(file, {{"a", SafetensorsDtype::F32, {4}, data}});
                },
                &text),
            Errc::InvalidArgument);
  EXPECT_NE(text.find("'a'"), std::string::npos);
  EXPECT_EQ(code_of([&] {
              write_safetensors_file(file, {{"a", SafetensorsDtype::U8, {4}, data},
                                            {"a", SafetensorsDtype::I8, {4}, data}});
            }),
            Errc::InvalidArgument);
  EXPECT_EQ(code_of([&] {
              write_safetensors_file(file, {{"\xFF", SafetensorsDtype::U8, {4}, data}});
            }),
            Errc::InvalidArgument);
  EXPECT_EQ(SafetensorsFile{file}.tensors().size(), 1U);
  EXPECT_EQ(std::distance(fs::directory_iterator{scratch.path}, {}), 1);
}

TEST(safetensors, PathsThatCannotBeReadOrWrittenAreNamed) {
  const Scratch scratch;
  std::string text;
  EXPECT_EQ(code_of([&] { SafetensorsFile{scratch.path / "none"}; }, &text), Errc::FileNotFound);
  EXPECT_NE(text.find("none"), std::string::npos);
  EXPECT_EQ(code_of([&] { SafetensorsFile{scratch.path}; }), Errc::FileCorrupt);
  EXPECT_EQ(code_of([&] { write_safetensors_file(scratch.path / "no" / "t", {}); }, &text),
            Errc::StorageUnavailable);
  EXPECT_NE(text.find("/no/t"), std::string::npos) << text;
  EXPECT_EQ(code_of([&] { write_safetensors_file("/dev/full/x", {}); }), Errc::StorageUnavailable);
}

}  // namespace
}  // namespace troupe
