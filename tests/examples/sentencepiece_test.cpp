#include <dlfcn.h>
#include <gtest/gtest.h>

#include <troupe/tokenizer.hpp>

#include "../../examples/tokenizers/sentencepiece_model.hpp"
#include "golden.hpp"

namespace troupe {
namespace {

namespace fs = std::filesystem;
using test::failure_of;

const fs::path& bpe() {
  static const auto folder = test::golden("tokenizers") / "sentencepiece_bpe";
  return folder;
}

/// The model with a tokenizer_config.json beside it.
std::unique_ptr<Tokenizer> with_config(const std::string& config) {
  const auto folder =
      fs::temp_directory_path() / ("troupe_sentencepiece_" + std::to_string(::getpid()));
  fs::create_directories(folder);
  fs::copy_file(bpe() / "tokenizer.model", folder / "tokenizer.model",
                fs::copy_options::overwrite_existing);
  std::ofstream{folder / "tokenizer_config.json"} << config;
  struct Gone {
    fs::path path;
    ~Gone() { fs::remove_all(path); }
  } gone{folder};
  return load_tokenizer(folder);
}

std::vector<std::string> tokens_of(const Tokenizer& tokenizer, const std::string& text) {
  std::vector<std::string> out;
  for (const auto id : tokenizer.encode(text)) out.push_back(tokenizer.id_to_token(id));
  return out;
}

TEST(SentencePiece, TakesRolesFromTheModel) {
  const auto tokenizer = load_tokenizer(bpe());
  const auto ids = tokenizer->special_ids();
  EXPECT_EQ(ids.unk, 0);
  EXPECT_EQ(ids.bos, 1);
  EXPECT_EQ(ids.eos, 2);
  EXPECT_EQ(ids.pad, std::nullopt);
  EXPECT_EQ(tokenizer->encode("").size(), 1U);
}

TEST(SentencePiece, PutsNoSpaceBehindSpecialTokensUnlessLegacy) {
  const auto now = load_tokenizer(bpe()), legacy = with_config(R"({"legacy": true})");
  EXPECT_EQ(tokens_of(*now, "a</s>a"), (std::vector<std::string>{"<s>", "▁a", "</s>", "a"}));
  EXPECT_EQ(tokens_of(*legacy, "a</s>a"), (std::vector<std::string>{"<s>", "▁a", "</s>", "▁a"}));
  EXPECT_EQ(tokens_of(*now, "</s>a"), (std::vector<std::string>{"<s>", "</s>", "a"}));
}

TEST(SentencePiece, FallsBackToBytesAndReadsThemBack) {
  const auto tokenizer = load_tokenizer(bpe());
  const std::string text = " two  spaces, \xF0\x9F\xA6\x8A and \xE6\xBC\xA2";
  EXPECT_EQ(tokenizer->decode(tokenizer->encode(text)), text);
  EXPECT_EQ(tokenizer->decode(std::vector<std::int64_t>{*tokenizer->token_to_id("<0xF0>"),
                                                        *tokenizer->token_to_id("<0x9F>")}),
            "\xEF\xBF\xBD\xEF\xBF\xBD");
}

TEST(SentencePiece, AddsEosWhereItsConfigSaysSo) {
  EXPECT_EQ(with_config(R"({"add_eos_token": true})")->encode("a").back(), 2);
  EXPECT_EQ(with_config(R"({"add_bos_token": false})")->encode("").size(), 0U);
}

TEST(SentencePiece, SavesAddedTokensWithTheModel) {
  auto tokenizer = load_tokenizer(bpe());
  const auto size = tokenizer->vocab_size();
  EXPECT_EQ(tokenizer->add_special_tokens({.pad = "<pad>", .additional = {"<START_Q>"}}), 2U);
  const auto folder =
      fs::temp_directory_path() / ("troupe_sentencepiece_saved_" + std::to_string(::getpid()));
  tokenizer->save(folder);
  const auto again = load_tokenizer(folder);
  fs::remove_all(folder);
  EXPECT_EQ(again->vocab_size(), size + 2);
  EXPECT_EQ(again->special_ids().pad, static_cast<std::int64_t>(size));
  EXPECT_EQ(again->encode("a<START_Q>b"), tokenizer->encode("a<START_Q>b"));
}

TEST(SentencePiece, RefusesWhatIsNoModel) {
  const auto bytes = test::read_file(bpe() / "tokenizer.model");
  const auto refused = [](const std::string& text) {
    return failure_of([&] { detail::SentencePieceModel{text, "tokenizer.model"}; });
  };
  EXPECT_EQ(refused(""),
            "FileCorrupt tokenizer.model: holds no pieces: is it a SentencePiece model?");
  EXPECT_EQ(refused("version https"),
            "FileCorrupt tokenizer.model: is no SentencePiece model, or cut off");
  EXPECT_NE(refused(bytes.substr(0, bytes.size() / 2)).find("FileCorrupt"), std::string::npos);
  EXPECT_NE(refused(bytes + std::string("\x12\x03\x18\x04", 4) + std::string(1, '\0'))
                .find("FileCorrupt"),
            std::string::npos);
  EXPECT_NE(refused(bytes + std::string("\x12\x02\x18\x04", 4))
                .find("model_type is neither unigram nor BPE"),
            std::string::npos);
  EXPECT_NE(refused(bytes + std::string("\x12\x04\xC8\x02\xFF\x7F", 6))
                .find("trainer_spec names the id 16383"),
            std::string::npos);
  EXPECT_NE(refused(bytes + std::string("\x1A\x06\x12\x04oops", 8))
                .find("precompiled_charsmap is broken"),
            std::string::npos);
  EXPECT_NE(failure_of([] {
              (void)with_config(R"({"tokenizer_class": "T5Tokenizer"})");
            }).find("tokenizer_class 'T5Tokenizer'"),
            std::string::npos);
}

TEST(SentencePiece, ChecksThatACharsmapStaysInsideItself) {
  const auto sound = [](std::vector<std::uint32_t> units, const std::string& strings) {
    const auto size = static_cast<std::uint32_t>(units.size() * 4);
    std::string out(reinterpret_cast<const char*>(&size), 4);
    out.append(reinterpret_cast<const char*>(units.data()), size);
    return detail::is_sound_charsmap(out + strings);
  };
  std::vector<std::uint32_t> units(512);
  units[0] = 256U << 10;  // children of the root from 256 on
  units[256 ^ 'a'] =
      'a' | 0x100U |
      (((256U ^ 'a') ^ 400U) << 10);  // "a" has a value, at 400 where its children begin
  units[400] = 0x80000000U;
  EXPECT_TRUE(sound(units, std::string("b\0", 2)));
  units[256 ^ 'a'] = 'a' | (2000U << 10);
  EXPECT_FALSE(sound(units, std::string("b\0", 2)));
  units[256 ^ 'a'] = 'a' | 0x100U | (512U << 10);
  EXPECT_FALSE(sound(units, std::string("b\0", 2)));
  EXPECT_FALSE(sound({1, 2, 3}, std::string("b\0", 2)));
  EXPECT_FALSE(sound(std::vector<std::uint32_t>(512), "no end"));
}

}  // namespace
}  // namespace troupe
