#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <set>
#include <troupe/errors.hpp>
#include <troupe/safetensors.hpp>

// Verdicts of safetensors 0.8.0 over valid, malformed and fuzzed files
// (tests/golden/f_safetensors): accept and reject must agree exactly; the texts are ours.

namespace troupe {
namespace {

namespace fs = std::filesystem;

fs::path golden() {
  const char* const other = std::getenv("TROUPE_GOLDEN");
  return fs::path{other ? other : TROUPE_TEST_GOLDEN} / "f_safetensors";
}

std::string read_file(const fs::path& file) {
  std::ifstream in{file, std::ios::binary};
  return {std::istreambuf_iterator<char>{in}, {}};
}

nlohmann::json read_json(const fs::path& file) { return nlohmann::json::parse(read_file(file)); }

std::string decode_base64(const std::string& text) {
  constexpr std::string_view alphabet =
      "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::string out;
  unsigned bits = 0;
  int held = 0;
  for (const char c : text) {
    const auto value = alphabet.find(c);
    if (value == std::string_view::npos) break;
    bits = bits << 6 | static_cast<unsigned>(value);
    if ((held += 6) >= 8) out += static_cast<char>(bits >> (held -= 8) & 0xFF);
  }
  return out;
}

/// "accept" or "reject", and the reason in `why`.
std::string verdict(const std::string& bytes, std::string& why) {
  try {
    (void)parse_safetensors(std::as_bytes(std::span{bytes}), "case");
    return "accept";
  } catch (const Failure& failure) {
    EXPECT_EQ(failure.code(), Errc::FileCorrupt);
    why = failure.what();
    return "reject";
  }
}

TEST(safetensors_golden, AgreesWithTheReferenceOnEveryFile) {
  const auto cases = read_json(golden() / "verdicts.json").at("cases");
  ASSERT_FALSE(cases.empty());
  for (const auto& [name, expected] : cases.items()) {
    const auto bytes = read_file(golden() / "files" / (name + ".safetensors"));
    ASSERT_EQ(bytes.size(), expected.at("bytes").get<std::size_t>()) << name;
    std::string why;
    EXPECT_EQ(verdict(bytes, why), expected.at("deserialize")) << name << ": " << why;
  }
}

TEST(safetensors_golden, ReadsTheKeysOfEveryAcceptedFile) {
  for (const auto& [name, expected] : read_json(golden() / "verdicts.json").at("cases").items()) {
    if (expected.at("safe_open") != "accept") continue;
    const SafetensorsFile file{golden() / "files" / (name + ".safetensors")};
    std::set<std::string> keys;
    for (const auto& tensor : file.tensors()) keys.insert(tensor.name);
    EXPECT_EQ(keys, expected.at("keys").get<std::set<std::string>>()) << name;
  }
}

TEST(safetensors_golden, AgreesWithTheReferenceOnEveryFuzzedFile) {
  const auto cases = read_json(golden() / "fuzz.json").at("cases");
  ASSERT_FALSE(cases.empty());
  for (std::size_t i = 0; i < cases.size(); ++i) {
    std::string why;
    const auto& expected = cases[i].at("deserialize");
    EXPECT_EQ(verdict(decode_base64(cases[i].at("b64")), why), expected)
        << "case " << i << ": " << why;
  }
}

TEST(safetensors_golden, RejectionsNameTheFileAndTheTensor) {
  try {
    const SafetensorsFile file{golden() / "files" / "shape_offset_mismatch_small.safetensors"};
    FAIL() << "accepted";
  } catch (const Failure& failure) {
    EXPECT_NE(std::string(failure.what()).find("shape_offset_mismatch_small.safetensors"),
              std::string::npos);
    EXPECT_NE(std::string(failure.what()).find("tensor 'a'"), std::string::npos) << failure.what();
  }
}

}  // namespace
}  // namespace troupe
