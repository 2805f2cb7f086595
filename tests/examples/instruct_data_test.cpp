#include <troupe/errors.hpp>
#include <troupe/instruct_data.hpp>

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <fstream>
#include <functional>
#include <numeric>

namespace troupe {
namespace {

namespace fs = std::filesystem;
using ::testing::Each;
using ::testing::HasSubstr;
using ::testing::StartsWith;

struct Scratch {
  fs::path path = [] {
    std::string name = (fs::temp_directory_path() / "instruct_XXXXXX").string();
    return fs::path{::mkdtemp(name.data())};
  }();
  ~Scratch() { fs::remove_all(path); }
  fs::path write(const std::string& name, const std::string& text) const {
    std::ofstream{path / name, std::ios::binary} << text;
    return path / name;
  }
};

std::string failure_of(const std::function<void()>& act) {
  try {
    act();
  } catch (const Failure& failure) {
    return std::string(name(failure.code())) + " " + failure.what();
  }
  return "";
}

std::unique_ptr<Tokenizer> tokenizer() {
  auto made = load_tokenizer(fs::path{TROUPE_TEST_GOLDEN} / "tokenizers" / "gpt2");
  SpecialTokens added;
  added.eos = "<eos>";
  added.additional = CompletionTags{}.all();
  made->add_special_tokens(added);
  return made;
}

std::string text_of(const TextExample& example) { return example.prompt + "|" + example.text; }

TEST(TextExamples, ReadsEveryKindOfJsonLine) {
  const Scratch scratch;
  const auto file = scratch.write("a.jsonl",
                                  "{\"question\": \"1+1?\", \"answer\": \"2\"}\n\n"
                                  "{\"input\": \"<START_Q>q<END_Q><START_A>a<END_A>\", \"id\": 7}\r\n"
                                  "{\"prompt\": \"Hello\", \"completion\": \" world\"}\n"
                                  "{\"text\": \"plain\"}\n"
                                  "{\"messages\": [{\"role\": \"user\", \"content\": \"hi\"}, {\"role\": \"assistant\", \"content\": \"ho\"}]}");
  const auto read = read_text_examples(file);
  ASSERT_EQ(read.size(), 5U);
  EXPECT_EQ(text_of(read[0]), "<START_Q>1+1?<END_Q><START_A>|2<END_A>");
  EXPECT_EQ(text_of(read[1]), "<START_Q>q<END_Q><START_A>|a<END_A>");
  EXPECT_EQ(text_of(read[2]), "Hello| world");
  EXPECT_EQ(text_of(read[3]), "|plain");
  ASSERT_EQ(read[4].messages.size(), 2U);
  EXPECT_EQ(read[4].messages[1].content, "ho");
}

TEST(TextExamples, SplitsPlainTextAtBlankLines) {
  const Scratch scratch;
  const auto read = read_text_examples(scratch.write("a.txt", "\none\r\ntwo\n \n\nthree"));
  ASSERT_EQ(read.size(), 2U);
  EXPECT_EQ(read[0].text, "one\ntwo\n");
  EXPECT_EQ(read[1].text, "three\n");
}

TEST(TextExamples, NamesFileAndLineOfWhatItCannotRead) {
  const Scratch scratch;
  const auto refusal = [&](const std::string& text) { return failure_of([&] { (void)read_text_examples(scratch.write("a.jsonl", text)); }); };
  EXPECT_THAT(refusal("{\"text\": \"a\"}\nno\n"), AllOf(StartsWith("DataMalformed"), HasSubstr("a.jsonl:2: is no JSON object")));
  EXPECT_THAT(refusal("{\"text\": 3}"), HasSubstr("a.jsonl:1: 'text' is no text, or empty"));
  EXPECT_THAT(refusal("{\"question\": \"a\"}"), HasSubstr("a.jsonl:1: has none of: question and answer; prompt and completion; messages; input; text"));
  EXPECT_THAT(refusal("{\"messages\": [{\"role\": \"user\"}]}"), HasSubstr("a.jsonl:1: a message lacks 'role' or 'content'"));
  EXPECT_THAT(refusal("{\"text\": \"\xff\"}"), HasSubstr("a.jsonl:1"));
  EXPECT_THAT(refusal("\n"), HasSubstr("there is no text in it"));
  EXPECT_THAT(failure_of([] { (void)read_text_examples("/no/such.txt"); }), StartsWith("FileNotFound /no/such.txt"));
}

TEST(CompletionTags, ReadsTheTemplatesFile) {
  const Scratch scratch;
  EXPECT_EQ(read_completion_tags(scratch.write("t.json", "{\"tokens\": [\"<Q>\", \"</Q>\", \"<A>\", \"</A>\"]}")).answer_begin, "<A>");
  EXPECT_THAT(failure_of([&] { (void)read_completion_tags(scratch.write("t.json", "{\"tokens\": [\"<Q>\"]}")); }), HasSubstr("t.json: tokens is no list of four tags"));
  EXPECT_THAT(failure_of([&] { (void)read_completion_tags(scratch.write("t.json", "{\"tags\": []}")); }), HasSubstr("has no 'tokens'"));
}

TEST(TokenRows, CutsExamplesAndEndsThemWithEos) {
  const auto tokens = tokenizer();
  const auto eos = *tokens->special_ids().eos;
  const auto rows = make_rows(*tokens, {{{}, "one two three four five six", {}}, {{}, "a", {}}}, {.context_length = 4});
  ASSERT_EQ(rows.size(), 2U);
  EXPECT_EQ(rows[0].ids.size(), 4U);
  EXPECT_NE(rows[0].ids.back(), eos);
  EXPECT_EQ(rows[1].ids.back(), eos);
  EXPECT_EQ(rows[1].labels, rows[1].ids);
}

TEST(TokenRows, MasksPromptsWhenAsked) {
  const auto tokens = tokenizer();
  const std::vector<TextExample> examples{{"<START_Q>1+1?<END_Q><START_A>", "2<END_A>", {}}};
  const auto plain = make_rows(*tokens, examples, {}).at(0);
  const auto masked = make_rows(*tokens, examples, {.mask_prompt = true}).at(0);
  EXPECT_EQ(plain.ids, masked.ids);
  EXPECT_EQ(plain.labels, plain.ids);
  const auto prompt = tokens->encode(examples[0].prompt).size();
  ASSERT_GT(masked.labels.size(), prompt);
  for (std::size_t i = 0; i < masked.labels.size(); ++i) EXPECT_EQ(masked.labels[i], i < prompt ? kIgnoredLabel : masked.ids[i]) << i;
  // A prompt that fills the context leaves nothing to train on.
  EXPECT_THAT(failure_of([&] { (void)make_rows(*tokens, examples, {.context_length = 3, .mask_prompt = true}); }), StartsWith("DataMalformed"));
}

TEST(TokenRows, SplitPackingLosesNothingButTheLastRow) {
  const auto tokens = tokenizer();
  const auto eos = *tokens->special_ids().eos;
  std::vector<std::int64_t> all;
  const std::vector<TextExample> examples{{{}, "one two three\n", {}}, {{}, "four five six seven eight\n", {}}};
  for (const auto& example : examples) {
    const auto ids = tokens->encode(example.text);
    all.insert(all.end(), ids.begin(), ids.end());
    all.push_back(eos);
  }
  std::vector<std::int64_t> packed;
  for (const auto& row : make_rows(*tokens, examples, {.context_length = 5, .packing = Packing::Split})) {
    EXPECT_EQ(row.ids.size(), 5U);
    EXPECT_TRUE(row.segment_ids.empty());
    packed.insert(packed.end(), row.ids.begin(), row.ids.end());
  }
  all.resize(all.size() / 5 * 5);
  EXPECT_EQ(packed, all);
}

TEST(TokenRows, WholePackingKeepsExamplesApart) {
  const auto tokens = tokenizer();
  const auto rows = make_rows(*tokens, {{{}, "one two", {}}, {{}, "three", {}}}, {.context_length = 24, .packing = Packing::Whole});
  ASSERT_EQ(rows.size(), 1U);
  const auto& row = rows[0];
  ASSERT_EQ(row.segment_ids.size(), row.ids.size());
  const auto second = static_cast<std::size_t>(std::ranges::find(row.segment_ids, 2) - row.segment_ids.begin());
  ASSERT_LT(second, row.ids.size());
  EXPECT_EQ(row.position_ids[second], 0);
  EXPECT_EQ(row.labels[second], kIgnoredLabel);
  EXPECT_EQ(row.segment_ids.back(), 0) << "padding";
  EXPECT_EQ(row.labels.back(), kIgnoredLabel);
}

}  // namespace
}  // namespace troupe
