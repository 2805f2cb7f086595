#include <gtest/gtest.h>
#include <unistd.h>

#include <troupe/wordpiece.hpp>

#include "golden.hpp"

// Expected numbers that are no arithmetic were taken from tokenizers 0.23.3.

namespace troupe {
namespace {

namespace fs = std::filesystem;
using Ids = std::vector<std::int64_t>;
using test::failure_of;

struct Scratch {
  fs::path path = [] {
    std::string name = (fs::temp_directory_path() / "wordpiece_XXXXXX").string();
    return fs::path{::mkdtemp(name.data())};
  }();
  ~Scratch() { fs::remove_all(path); }
  void write(const std::string& file, const std::string& text) const {
    std::ofstream{path / file} << text;
  }
};

std::vector<std::string> vocabulary() {
  return {"[PAD]",  "[UNK]", "[CLS]", "[SEP]",    "[MASK]", "the",        "The", "run",
          "##ning", "##s",   "e",     "\xC3\xA9", "t",      "##\xC3\xA9", "##e", "i"};
}

std::vector<std::string> pieces(const WordPiece& words, const std::string& text) {
  auto tokens = words.encode(text).tokens;
  return {tokens.begin() + 1, tokens.end() - 1};
}

TEST(wordpiece, CasedKeepsCaseAndAccentsUncasedDropsBoth) {
  const WordPiece cased{vocabulary(), {.do_lower_case = false}};
  const WordPiece uncased{vocabulary()};
  EXPECT_EQ(pieces(cased, "The the \xC3\xA9"),
            (std::vector<std::string>{"The", "the", "\xC3\xA9"}));
  EXPECT_EQ(pieces(uncased, "The the \xC3\xA9"), (std::vector<std::string>{"the", "the", "e"}));
  const WordPiece accents{vocabulary(), {.strip_accents = false}};
  EXPECT_EQ(pieces(accents, "T\xC3\x89"), (std::vector<std::string>{"t", "##\xC3\xA9"}));
}

TEST(wordpiece, SpecialTokensInTheTextAreTaken) {
  const WordPiece words{vocabulary()};
  const auto got = words.encode("the[MASK] running");
  EXPECT_EQ(got.ids, (Ids{2, 5, 4, 7, 8, 3}));
  EXPECT_EQ(got.offsets[2], (std::pair<std::int64_t, std::int64_t>{3, 9}));
  EXPECT_EQ(got.offsets[4], (std::pair<std::int64_t, std::int64_t>{13, 17}));
}

TEST(wordpiece, BytesThatAreNotUtf8AreDropped) {
  const WordPiece words{vocabulary()};
  EXPECT_EQ(pieces(words,
                   "th\xFF"
                   "e"),
            (std::vector<std::string>{"the"}));
}

TEST(wordpiece, LengthsThatCannotHoldTheSpecialTokensAreRefused) {
  const WordPiece words{vocabulary()};
  EXPECT_TRUE(failure_of([&] {
                (void)words.encode("the", 1);
              }).starts_with("InvalidArgument max_length 1"));
  EXPECT_TRUE(failure_of([&] {
                (void)words.encode("the", "run", 2);
              }).starts_with("InvalidArgument max_length 2"));
  EXPECT_EQ(words.encode("the", "run", 3).ids, (Ids{2, 3, 3}));
  EXPECT_EQ(words.encode("the run", 3, WordPiece::Truncation::None).ids.size(), 4U);
}

TEST(wordpiece, ReadsWhatItWrites) {
  const Scratch scratch;
  const WordPiece words{vocabulary(), {.do_lower_case = false}};
  words.save(scratch.path);
  const auto read = WordPiece::from_pretrained(scratch.path);
  EXPECT_FALSE(read.options().do_lower_case);
  EXPECT_EQ(read.vocab_size(), words.vocab_size());
  EXPECT_EQ(read.encode("The running \xC3\xA9").ids, words.encode("The running \xC3\xA9").ids);
}

TEST(wordpiece, ReadsTokenizerJsonWhenThereIsNoVocabTxt) {
  const Scratch scratch;
  scratch.write(
      "tokenizer.json",
      R"({"normalizer":{"type":"BertNormalizer","lowercase":false},"model":{"type":"WordPiece",
      "vocab":{"[PAD]":0,"[UNK]":1,"[CLS]":2,"[SEP]":3,"[MASK]":4,"The":5}}})");
  EXPECT_EQ(pieces(WordPiece::from_pretrained(scratch.path), "The"),
            (std::vector<std::string>{"The"}));
  scratch.write("tokenizer.json", R"({"model":{"type":"BPE","vocab":{}}})");
  EXPECT_NE(
      failure_of([&] { (void)WordPiece::from_pretrained(scratch.path); }).find("no WordPiece"),
      std::string::npos);
}

TEST(wordpiece, ADirectoryThatLacksSomethingIsNamed) {
  const Scratch scratch;
  EXPECT_TRUE(failure_of([&] {
                (void)WordPiece::from_pretrained(scratch.path);
              }).starts_with("FileNotFound"));
  scratch.write("vocab.txt", "[PAD]\n[UNK]\n[CLS]\nthe\n");
  const auto text = failure_of([&] { (void)WordPiece::from_pretrained(scratch.path); });
  EXPECT_TRUE(text.starts_with("FileCorrupt") && text.find("vocab.txt") != std::string::npos &&
              text.find("'[SEP]'") != std::string::npos)
      << text;
  scratch.write("vocab.txt", "[PAD]\r\n[UNK]\r\n[CLS]\r\n[SEP]\r\nthe\r\n");
  EXPECT_EQ(WordPiece::from_pretrained(scratch.path).vocab_size(), 5U);
  scratch.write("tokenizer_config.json", R"({"do_lower_case": "yes"})");
  EXPECT_NE(
      failure_of([&] { (void)WordPiece::from_pretrained(scratch.path); }).find("'do_lower_case'"),
      std::string::npos);
}

TEST(wordpiece, DecodeLeavesOutSpecialTokensOnlyWhenAsked) {
  const WordPiece words{vocabulary()};
  const Ids ids{2, 5, 7, 8, 3, 99};
  EXPECT_EQ(words.decode(ids), "the running");
  EXPECT_EQ(words.decode(ids, false), "[CLS] the running [SEP]");
}

}  // namespace
}  // namespace troupe
