#include <gtest/gtest.h>

#include <numeric>
#include <troupe/wordpiece.hpp>

#include "golden.hpp"

// Numbers of tokenizers 0.23.3's BertTokenizerFast over MiniLM's vocabulary
// (tests/golden/b_wordpiece): all exact.

namespace troupe {
namespace {

using nlohmann::json;
using Ids = std::vector<std::int64_t>;

class wordpiece_golden : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    reference_ = new json(test::read_json(test::golden("b_wordpiece") / "golden.json"));
    words_ = new WordPiece(WordPiece::from_pretrained(test::minilm()));
  }
  static void TearDownTestSuite() {
    delete words_;
    delete reference_;
  }
  static std::string text(std::size_t i) {
    return reference_->at("single").at(i).at("text").get<std::string>();
  }
  static Ids ids(const json& j) { return j.get<Ids>(); }
  static std::int64_t sum(const Ids& v) {
    return std::accumulate(v.begin(), v.end(), std::int64_t{0});
  }

  static inline json* reference_ = nullptr;
  static inline WordPiece* words_ = nullptr;
};

TEST_F(wordpiece_golden, SingleTextsGiveTheReferencesTokensIdsAndOffsets) {
  for (const auto& row : reference_->at("single")) {
    const auto got = words_->encode(row.at("text").get<std::string>());
    EXPECT_EQ(got.ids, ids(row.at("ids"))) << row.at("i");
    EXPECT_EQ(got.tokens, row.at("tokens").get<std::vector<std::string>>()) << row.at("i");
    EXPECT_EQ(json(got.offsets), row.at("offsets")) << row.at("i");
    const Ids bare(got.ids.begin() + 1, got.ids.end() - 1);
    EXPECT_EQ(bare, ids(row.at("ids_no_special"))) << row.at("i");
  }
}

TEST_F(wordpiece_golden, SingleTextsAreCutAndPaddedTo64) {
  for (const auto& row : reference_->at("single")) {
    auto got = words_->encode(row.at("text").get<std::string>(), 64);
    words_->pad(got, 64);
    EXPECT_EQ(got.ids, ids(row.at("max64"))) << row.at("i");
    EXPECT_EQ(sum(got.attention_mask), row.at("max64_mask_sum").get<std::int64_t>()) << row.at("i");
  }
}

void expect_same(const json& want, WordPiece::Encoding got, const WordPiece& words,
                 std::size_t length, const std::string& where) {
  words.pad(got, length);
  EXPECT_EQ(got.ids, want.at("input_ids").get<Ids>()) << where;
  EXPECT_EQ(got.type_ids, want.at("token_type_ids").get<Ids>()) << where;
  EXPECT_EQ(std::accumulate(got.attention_mask.begin(), got.attention_mask.end(), std::int64_t{0}),
            want.at("attention_mask_sum"))
      << where;
}

TEST_F(wordpiece_golden, PairsAreTruncatedByEveryStrategy) {
  const std::vector<std::pair<std::string, WordPiece::Truncation>> strategies{
      {"longest_first", WordPiece::Truncation::LongestFirst},
      {"only_first", WordPiece::Truncation::OnlyFirst},
      {"only_second", WordPiece::Truncation::OnlySecond}};
  for (const auto& row : reference_->at("pairs")) {
    const auto a = text(row.at("a"));
    const auto b = text(row.at("b"));
    const auto length = row.at("max_length").get<std::size_t>();
    EXPECT_EQ(words_->encode(a, b).ids.size(), row.at("untruncated_len").get<std::size_t>());
    for (const auto& [key, strategy] : strategies) {
      if (!row.contains(key)) continue;
      const auto where = row.at("a").dump() + "/" + row.at("b").dump() + " at " +
                         std::to_string(length) + ", " + key;
      if (row.at(key).contains("error")) {
        const auto text_of =
            test::failure_of([&, s = strategy] { (void)words_->encode(a, b, length, s); });
        EXPECT_TRUE(text_of.starts_with("InvalidArgument")) << where << ": " << text_of;
      } else {
        expect_same(row.at(key), words_->encode(a, b, length, strategy), *words_, length, where);
      }
    }
  }
}

TEST_F(wordpiece_golden, ABatchIsPaddedToAMultipleOfEight) {
  const auto& batch = reference_->at("batch_longest_multiple_of_8");
  std::vector<WordPiece::Encoding> got;
  for (const auto& pair : batch.at("pairs"))
    got.push_back(words_->encode(text(pair.at(0)), text(pair.at(1))));
  words_->pad(std::span{got}, 8);
  for (std::size_t i = 0; i < got.size(); ++i) {
    EXPECT_EQ(got[i].ids, ids(batch.at("input_ids").at(i)));
    EXPECT_EQ(got[i].type_ids, ids(batch.at("token_type_ids").at(i)));
    EXPECT_EQ(got[i].attention_mask, ids(batch.at("attention_mask").at(i)));
  }
}

TEST_F(wordpiece_golden, DecodesAsTheReference) {
  for (const auto& row : reference_->at("decode")) {
    EXPECT_EQ(words_->decode(words_->encode(text(row.at("i"))).ids),
              row.at("decode_skip_special").get<std::string>())
        << row.at("i");
  }
}

}  // namespace
}  // namespace troupe
