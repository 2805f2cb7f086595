#include <gtest/gtest.h>

#include <troupe/tokenizer.hpp>

#include "golden.hpp"

namespace troupe {
namespace {

using nlohmann::json;
using test::failure_of;
namespace fs = std::filesystem;

/// A directory with files, gone afterwards.
class Folder {
 public:
  Folder() {
    fs::remove_all(path_);
    fs::create_directories(path_);
  }
  ~Folder() { fs::remove_all(path_); }
  Folder(const Folder&) = delete;
  Folder& operator=(const Folder&) = delete;
  void write(const std::string& name, const std::string& text) const {
    std::ofstream{path_ / name, std::ios::binary} << text;
  }
  [[nodiscard]] const fs::path& path() const { return path_; }

 private:
  fs::path path_ =
      fs::temp_directory_path() / ("troupe_tokenizer_test_" + std::to_string(::getpid()));
};

/// A small tokenizer.json: "hello", "wor" and "ld" out of letters.
json small() {
  return json::parse(
      R"({"version":"1.0","added_tokens":[{"id":12,"content":"<s>","special":true}],"normalizer":null,
    "pre_tokenizer":{"type":"WhitespaceSplit"},"post_processor":null,"decoder":null,
    "model":{"type":"BPE","unk_token":"<unk>","vocab":{"<unk>":0,"h":1,"e":2,"l":3,"o":4,"w":5,"r":6,"d":7,"he":8,"hel":9,"hello":10,"lo":11},
             "merges":["h e","he l",["l","o"],"hel lo"]}})");
}

std::unique_ptr<Tokenizer> load(const json& document, const json& config = {}) {
  const Folder folder;
  folder.write("tokenizer.json", document.dump());
  if (!config.is_null()) folder.write("tokenizer_config.json", config.dump());
  return load_tokenizer(folder.path());
}

std::string refused(const std::function<void(json&)>& change) {
  auto document = small();
  change(document);
  return failure_of([&] { (void)load(document); });
}

using Ids = std::vector<std::int64_t>;

TEST(Tokenizer, MergesInTheOrderOfRanks) {
  const auto tokenizer = load(small());
  EXPECT_EQ(tokenizer->encode("hello held x"), (Ids{10, 9, 7, 0}));
  EXPECT_EQ(tokenizer->decode(Ids{10, 99, -1, 12}), "hello");
  EXPECT_EQ(tokenizer->decode(Ids{10, 12}, false), "hello <s>");
  EXPECT_EQ(tokenizer->vocab_size(), 13U);
  EXPECT_EQ(tokenizer->token_to_id("lo"), 11);
  EXPECT_EQ(tokenizer->token_to_id("nothing"), std::nullopt);
  EXPECT_EQ(tokenizer->id_to_token(12), "<s>");
  EXPECT_EQ(failure_of([&] { (void)tokenizer->id_to_token(13); }),
            "InvalidArgument no token has the id 13; there are ids up to 12");
}

TEST(Tokenizer, RefusesByFileAndKeyWhatItDoesNotKnow) {
  const auto has = [](const std::string& text, const std::string& part) {
    EXPECT_NE(text.find(part), std::string::npos) << text;
  };
  has(refused([](json& d) { d["model"]["type"] = "Unigram"; }),
      "tokenizer.json: model.type 'Unigram' is not supported");
  has(refused([](json& d) { d["model"]["dropout"] = 0.1; }), "model.dropout is not supported");
  has(refused([](json& d) { d["model"]["cleverness"] = 3; }),
      "model.cleverness is a setting that is not known");
  has(refused([](json& d) {
        d["pre_tokenizer"] = {{"type", "UnicodeScripts"}};
      }),
      "pre_tokenizer.type 'UnicodeScripts' is not supported");
  has(refused([](json& d) {
        d["normalizer"] = {{"type", "Sequence"},
                           {"normalizers", {{{"type", "NFC"}}, {{"type", "Precompiled"}}}}};
      }),
      "normalizer.normalizers[1].type 'Precompiled' is not supported");
  has(refused([](json& d) {
        d["decoder"] = {{"type", "CTC"}};
      }),
      "decoder.type 'CTC' is not supported");
  has(refused([](json& d) {
        d["post_processor"] = {{"type", "Magic"}};
      }),
      "post_processor.type 'Magic' is not supported");
  has(refused([](json& d) { d["extra"] = 1; }),
      "tokenizer.json: extra is a setting that is not known");
}

TEST(Tokenizer, NamesWhatIsBroken) {
  const auto has = [](const std::string& text, const std::string& part) {
    EXPECT_NE(text.find(part), std::string::npos) << text;
  };
  has(refused([](json& d) { d["model"]["vocab"]["h"] = 2; }), "FileCorrupt");
  has(refused([](json& d) { d["model"]["vocab"]["h"] = 4'000'000'000; }),
      "model.vocab gives the token 'h' the id 4000000000");
  has(refused([](json& d) { d["model"]["vocab"]["h"] = -1; }),
      "model.vocab gives the token 'h' the id -1");
  has(refused([](json& d) { d["model"]["merges"].push_back("h x"); }),
      "model.merges has at 4 the token 'x', which is not in the vocabulary");
  has(refused([](json& d) { d["model"]["merges"].push_back("h"); }),
      "model.merges has at 4 what is no pair of tokens");
  has(refused([](json& d) { d["added_tokens"][0]["id"] = 20; }),
      "added_tokens[0].id is 20, but '<s>' is added as 12");
  has(refused([](json& d) { d["model"].erase("vocab"); }), "model.vocab is missing");
  has(refused([](json& d) { d.erase("model"); }), "tokenizer.json: model is missing");
  has(failure_of([] {
        const Folder folder;
        folder.write("tokenizer.json", "{\"model\": ");
        (void)load_tokenizer(folder.path());
      }),
      "tokenizer.json: is no JSON");
  has(failure_of([] { (void)load_tokenizer(Folder{}.path()); }), "FileNotFound");
  has(failure_of([] {
        (void)load(small(), json{{"added_tokens_decoder", {{"77", {{"content", "<x>"}}}}}});
      }),
      "'<x>' is said to have the id 77, but it is added as 13");
}

TEST(Tokenizer, RefusesPatternsThatIcuReadsInAnotherWay) {
  const auto with = [](const std::string& pattern) {
    return refused([&](json& d) {
      d["pre_tokenizer"] = {{"type", "Split"},
                            {"pattern", {{"Regex", pattern}}},
                            {"behavior", "Isolated"},
                            {"invert", false}};
    });
  };
  for (const auto* pattern : {"\\h+", "a{2}+", "[[:alpha:]]", "(?m:a.)", "(?<name>a)", "\\bfoo",
                              "[a&&b]", "(a)\\1", "\\p{^L}"})
    EXPECT_NE(with(pattern).find("tokenizer.json: pre_tokenizer.pattern: "), std::string::npos)
        << pattern << ": " << with(pattern);
  EXPECT_NE(with("(a").find("is no regular expression"), std::string::npos);
  for (const auto* pattern : {"\\s+|\\S+", "[^\\s\\w]++", "(?i:ab)|(?<=a)b(?!c)", "\\x41\\u0042"})
    EXPECT_EQ(with(pattern), "nothing was thrown") << pattern;
}

TEST(Tokenizer, EndsAPatternThatTakesForEver) {
  auto document = small();
  document["pre_tokenizer"] = {{"type", "Split"},
                               {"pattern", {{"Regex", "(h+)+x"}}},
                               {"behavior", "Isolated"},
                               {"invert", false}};
  const auto tokenizer = load(document);
  EXPECT_NE(failure_of([&] {
              (void)tokenizer->encode(std::string(60, 'h'));
            }).find("the pattern cannot be matched"),
            std::string::npos);
}

TEST(Tokenizer, CountsBytesThatAreNoUtf8AsPythonDoes) {
  const auto tokenizer = load_tokenizer(test::golden("tokenizers") / "gpt2");
  const auto same = [&](const char* broken, const char* whole) {
    EXPECT_EQ(tokenizer->encode(broken), tokenizer->encode(whole)) << whole;
  };
  same("a\xFFz", "a\xEF\xBF\xBDz");
  same("\xE2\x82z", "\xEF\xBF\xBDz");                            // a character cut short: one
  same("\xED\xA0\x80", "\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD");  // a surrogate: three
  same("\xF0\x9F\x98", "\xEF\xBF\xBD");
}

TEST(Tokenizer, TruncatesWithItsSpecialTokens) {
  const auto tokenizer = load_tokenizer(test::golden("tokenizers") / "bert");
  const auto all = tokenizer->encode("the light", "the day and the night");
  ASSERT_GT(all.size(), 9U);
  EXPECT_EQ(tokenizer->encode("the light", "the day and the night", {.max_length = 8}).size(), 8U);
  EXPECT_EQ(failure_of([&] { (void)tokenizer->encode("a", "b", {.max_length = 2}); }),
            "InvalidArgument max_length 2 cannot hold the 3 special tokens");
  const std::string texts[] = {"a", "b"};
  EXPECT_EQ(failure_of([&] { (void)tokenizer->encode_batch(texts, {.max_length = 1}); }),
            "InvalidArgument text 0: max_length 1 cannot hold the 2 special tokens");
}

TEST(Tokenizer, CutsOnTheLeftWhenItsConfigSaysSo) {
  const auto right = load(small()), left = load(small(), json{{"truncation_side", "left"}});
  EXPECT_EQ(right->encode("hello held", {.max_length = 2}), (Ids{10, 9}));
  EXPECT_EQ(left->encode("hello held", {.max_length = 2}), (Ids{9, 7}));
}

TEST(Tokenizer, AddsSpecialTokensOnceAndTakesThemWhole) {
  auto tokenizer = load(small());
  EXPECT_EQ(tokenizer->add_special_tokens({.pad = "<pad>", .additional = {"<START_Q>", "hello"}}),
            2U);
  EXPECT_EQ(tokenizer->vocab_size(), 15U);
  EXPECT_EQ(tokenizer->special_ids().pad, 13);
  EXPECT_EQ(tokenizer->encode("hello<START_Q>lo<pad>"), (Ids{10, 14, 11, 13}));
  EXPECT_TRUE(tokenizer->is_special(10));
  EXPECT_EQ(tokenizer->decode(Ids{10, 14, 11, 13}), "lo");
  EXPECT_EQ(tokenizer->add_special_tokens({.pad = "<pad>"}), 0U);
  EXPECT_EQ(failure_of([&] { (void)tokenizer->add_special_tokens({.additional = {""}}); }),
            "InvalidArgument an empty text is no special token");
}

TEST(Tokenizer, ReadsRolesOutOfItsConfig) {
  const json config{{"bos_token", {{"content", "<s>"}, {"lstrip", false}}},
                    {"pad_token", "<pad>"},
                    {"add_bos_token", true},
                    {"model_max_length", 1e30},
                    {"chat_template", "{{ x }}"}};
  const auto tokenizer = load(small(), config);
  EXPECT_EQ(tokenizer->special_ids().bos, 12);
  EXPECT_EQ(tokenizer->special_ids().pad, 13);
  EXPECT_EQ(tokenizer->special_ids().eos, std::nullopt);
  EXPECT_EQ(tokenizer->encode("lo"), (Ids{12, 11}));
  EXPECT_EQ(tokenizer->encode("lo", {.add_special_tokens = false}), (Ids{11}));
  EXPECT_EQ(tokenizer->chat_template(), "{{ x }}");
  EXPECT_EQ(tokenizer->model_max_length(), std::nullopt);
  EXPECT_NE(failure_of([&] {
              (void)load(small(), json{{"bos_token", 5}});
            }).find("tokenizer_config.json: bos_token should be a token, not 5"),
            std::string::npos);
}

TEST(Tokenizer, ReadsVocabTxtAsTheTokenizerJsonOfIt) {
  const auto source = test::golden("tokenizers") / "bert";
  const auto document = test::read_json(source / "tokenizer.json");
  std::vector<std::string> words(document["model"]["vocab"].size());
  for (const auto& item : document["model"]["vocab"].items())
    words[item.value().get<std::size_t>()] = item.key();
  std::string text;
  for (const auto& word : words) text += word + "\n";
  const Folder folder;
  folder.write("vocab.txt", text);
  const auto ours = load_tokenizer(folder.path()), wanted = load_tokenizer(source);
  for (const auto& item : test::read_json(test::golden("tokenizers") / "golden.json")["strings"]) {
    const auto string = item.get<std::string>();
    EXPECT_EQ(ours->encode(string), wanted->encode(string)) << string;
    EXPECT_EQ(ours->encode(string, "x"), wanted->encode(string, "x")) << string;
  }
  EXPECT_EQ(ours->special_ids().mask, 4);
}

TEST(Tokenizer, ReadsVocabJsonAndMergesAsTheTokenizerJsonOfThem) {
  const auto source = test::golden("tokenizers") / "gpt2";
  const auto document = test::read_json(source / "tokenizer.json");
  std::string merges = "#version: 0.2\n";
  for (const auto& merge : document["model"]["merges"])
    merges += merge[0].get<std::string>() + " " + merge[1].get<std::string>() + "\n";
  const Folder folder;
  folder.write("vocab.json", document["model"]["vocab"].dump());
  folder.write("merges.txt", merges);
  const auto ours = load_tokenizer(folder.path()), wanted = load_tokenizer(source);
  for (const auto& item : test::read_json(test::golden("tokenizers") / "golden.json")["strings"])
    EXPECT_EQ(ours->encode(item.get<std::string>()), wanted->encode(item.get<std::string>()));
  EXPECT_EQ(ours->special_ids().eos, 0);
  folder.write("tokenizer_config.json", R"({"tokenizer_class": "CLIPTokenizer"})");
  EXPECT_NE(failure_of([&] {
              (void)load_tokenizer(folder.path());
            }).find("tokenizer_class 'CLIPTokenizer'"),
            std::string::npos);
}

TEST(Tokenizer, FindsWordsAgainWhenItsCacheIsFull) {
  const auto cached = load_tokenizer(test::golden("tokenizers") / "gpt2");
  std::string text;
  for (int i = 0; i < 40'000; ++i) text += " w" + std::to_string(i * 7919);
  const auto first = cached->encode(text);
  EXPECT_EQ(cached->encode(text), first);
  EXPECT_EQ(cached->decode(first), text);
}

}  // namespace
}  // namespace troupe
