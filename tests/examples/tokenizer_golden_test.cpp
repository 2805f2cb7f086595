// Every kind of tokenizer beside what Hugging Face's tokenizers 0.23.3 and the sentencepiece
// library make of the same strings (tests/examples/make_tokenizers.py).
#include <gtest/gtest.h>

#include <cstdlib>
#include <thread>
#include <troupe/stream_decoder.hpp>
#include <troupe/tokenizer.hpp>

#include "golden.hpp"

namespace troupe {
namespace {

using nlohmann::json;
namespace fs = std::filesystem;

fs::path directory(const std::string& kind) { return test::golden("tokenizers") / kind; }

const json& golden() {
  static const json all = test::read_json(test::golden("tokenizers") / "golden.json");
  return all;
}

std::vector<std::string> kinds(const json& of) {
  std::vector<std::string> out;
  for (const auto& item : of.items()) out.push_back(item.key());
  return out;
}

class TokenizerKind : public ::testing::TestWithParam<std::string> {
 protected:
  const json& wanted_ = golden()["kinds"][GetParam()];
  const std::vector<std::string> strings_ = golden()["strings"];
  const std::unique_ptr<Tokenizer> tokenizer_ = load_tokenizer(directory(GetParam()));
};

TEST_P(TokenizerKind, GivesTheReferencesIdsAndText) {
  for (std::size_t i = 0; i < strings_.size(); ++i) {
    const auto ids = tokenizer_->encode(strings_[i]);
    EXPECT_EQ(json(ids), wanted_["ids"][i]) << strings_[i];
    EXPECT_EQ(tokenizer_->decode(ids), wanted_["text"][i]) << strings_[i];
    EXPECT_EQ(tokenizer_->decode(ids, false), wanted_["text_with_special"][i]) << strings_[i];
  }
}

TEST_P(TokenizerKind, GivesTheReferencesIdsAndTypesOfPairs) {
  for (std::size_t i = 0; i < golden()["pairs"].size(); ++i) {
    const std::string first = golden()["pairs"][i][0], second = golden()["pairs"][i][1];
    const std::string_view firsts[] = {first}, seconds[] = {second};
    const auto batch = tokenizer_->encode_batch(firsts, seconds, {.type_ids = true});
    EXPECT_EQ(json(batch.ids), wanted_["pairs"][i][0]) << first;
    EXPECT_EQ(json(batch.type_ids), wanted_["pairs"][i][1]) << first;
  }
}

TEST_P(TokenizerKind, GivesTheSameFromManyThreads) {
  const auto expected = tokenizer_->encode_batch(strings_);
  std::vector<TokenBatch> seen(4);
  {
    std::vector<std::jthread> threads;
    for (auto& batch : seen)
      threads.emplace_back([&] { batch = tokenizer_->encode_batch(strings_); });
  }
  for (const auto& batch : seen) EXPECT_EQ(batch.ids, expected.ids);
}

TEST_P(TokenizerKind, SavesWhatItLoadsAgain) {
  const auto copy =
      fs::temp_directory_path() / ("troupe_tokenizer_" + GetParam() + std::to_string(::getpid()));
  EXPECT_EQ(tokenizer_->add_special_tokens({.additional = {"<START_Q>", "<END_Q>", "<START_Q>"}}),
            2U);
  tokenizer_->save(copy);
  const auto again = load_tokenizer(copy);
  fs::remove_all(copy);
  EXPECT_EQ(again->vocab_size(), tokenizer_->vocab_size());
  EXPECT_EQ(again->special_tokens().additional, (std::vector<std::string>{"<START_Q>", "<END_Q>"}));
  for (const auto& text : strings_)
    EXPECT_EQ(again->encode(text + "<START_Q>x"), tokenizer_->encode(text + "<START_Q>x")) << text;
}

/// All of a text at once, and id by id; whole characters each time.
TEST_P(TokenizerKind, StreamsTheTextThatDecodeGives) {
  for (const auto& text : strings_) {
    const auto ids = tokenizer_->encode(text);
    StreamDecoder stream{*tokenizer_};
    std::string joined;
    for (const auto id : ids) {
      const auto part = stream.push(id);
      EXPECT_TRUE(part.empty() || (static_cast<unsigned char>(part.front()) & 0xC0) != 0x80)
          << text;
      joined += part;
    }
    joined += stream.finish();
    EXPECT_EQ(joined, tokenizer_->decode(ids)) << text;
  }
}

INSTANTIATE_TEST_SUITE_P(All, TokenizerKind, ::testing::ValuesIn(kinds(golden()["kinds"])),
                         [](const auto& param) { return param.param; });

TEST(SentencePieceGolden, GivesTheLibrarysIds) {
  const auto& all = golden()["sentencepiece"];
  for (const auto& kind : kinds(all["kinds"])) {
    const auto tokenizer = load_tokenizer(directory(kind));
    for (std::size_t i = 0; i < all["strings"].size(); ++i) {
      const std::string text = all["strings"][i];
      EXPECT_EQ(json(tokenizer->encode(text)), all["kinds"][kind][i]) << kind << " " << text;
    }
  }
}

/// The files of SmolLM2, from TROUPE_SMOLLM2 or where tools/bootstrap smollm2 puts them.
TEST(SmolLm2Golden, GivesTheReferencesIds) {
  const char* const given = std::getenv("TROUPE_SMOLLM2");
  const char* const cache = std::getenv("TROUPE_CACHE");
  const char* const home = std::getenv("HOME");
  const auto folder =
      given ? fs::path{given}
            : fs::path{cache ? cache : std::string(home ? home : "") + "/.cache/troupe"} /
                  "smollm2" / "model";
  if (!fs::exists(folder / "tokenizer.json"))
    GTEST_SKIP() << "there is no " << folder / "tokenizer.json"
                 << "; tools/bootstrap smollm2 makes it";
  const auto wanted = test::read_json(test::golden("tokenizers") / "smollm2_real.json");
  const auto tokenizer = load_tokenizer(folder);
  EXPECT_EQ(tokenizer->vocab_size(), 49152U);
  for (std::size_t i = 0; i < wanted["strings"].size(); ++i) {
    const auto ids =
        tokenizer->encode(wanted["strings"][i].get<std::string>(), {.add_special_tokens = false});
    EXPECT_EQ(json(ids), wanted["ids"][i]) << wanted["strings"][i];
    EXPECT_EQ(tokenizer->decode(ids), wanted["text"][i]) << wanted["strings"][i];
  }
}

}  // namespace
}  // namespace troupe
