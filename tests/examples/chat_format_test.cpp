#include <gtest/gtest.h>

#include <troupe/chat_format.hpp>
#include <troupe/stream_decoder.hpp>
#include <troupe/tokenizer.hpp>

#include "golden.hpp"

namespace troupe {
namespace {

using test::failure_of;

const std::vector<ChatMessage> kTalk{
    {"user", "Hi"}, {"assistant", "Hello."}, {"user", " Bye "}, {"assistant", "So long"}};

TEST(ChatFormat, WritesChatMl) {
  EXPECT_EQ(format_chat(ChatFormat::ChatMl, std::span{kTalk}.first(1), true),
            "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n");
  EXPECT_EQ(format_chat(ChatFormat::SmolLm2, std::span{kTalk}.first(1)),
            "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging "
            "Face<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n");
  const ChatMessage system[] = {{"system", "Be brief"}};
  EXPECT_EQ(format_chat(ChatFormat::SmolLm2, system), "<|im_start|>system\nBe brief<|im_end|>\n");
  const ChatMessage odd[] = {{"tool", "x"}};
  EXPECT_EQ(failure_of([&] { (void)format_chat(ChatFormat::ChatMl, odd); }),
            "InvalidArgument a message has the role 'tool'; there are: system user assistant");
}

TEST(ChatFormat, WritesLlama2) {
  EXPECT_EQ(format_chat(ChatFormat::Llama2, kTalk),
            "<s>[INST] Hi [/INST] Hello. </s><s>[INST] Bye [/INST] So long </s>");
  const ChatMessage system[] = {{"system", "Be brief"}, {"user", "Hi"}};
  EXPECT_EQ(format_chat(ChatFormat::Llama2, system, true),
            "<s>[INST] <<SYS>>\nBe brief\n<</SYS>>\n\nHi [/INST]");
  EXPECT_NE(failure_of([&] {
              (void)format_chat(ChatFormat::Llama2, std::span{kTalk}.subspan(1));
            }).find("message 0 should be of the role 'user'"),
            std::string::npos);
  EXPECT_NE(failure_of([&] {
              (void)format_chat(ChatFormat::Llama2, kTalk, true);
            }).find("the last message should be the user's"),
            std::string::npos);
}

TEST(ChatFormat, RecognisesTemplatesAndRefusesOthers) {
  const std::string smollm2 =
      "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ "
      "'<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by "
      "Hugging Face<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + "
      "message['content'] + '<|im_end|>' + '\n'}}{% endfor %}";
  EXPECT_EQ(recognize_chat_format(smollm2), ChatFormat::SmolLm2);
  EXPECT_EQ(recognize_chat_format("{% for m in messages %}{{'<|im_start|>' + m['role'] + '\n' + "
                                  "m['content'] + '<|im_end|>' + '\n'}}{% endfor %}"),
            ChatFormat::ChatMl);
  EXPECT_EQ(recognize_chat_format(
                "{{ bos_token + '[INST] ' + ('<<SYS>>' + x + content.strip() + ' [/INST]' }}"),
            ChatFormat::Llama2);
  for (const auto* other :
       {"", "{{ x }}", "<|im_start|><|im_end|>{{ tools }}", "<|im_start|>You are Qwen<|im_end|>",
        "{{ '[INST] ' + message['content'] }}"}) {
    const auto text =
        failure_of([&] { (void)recognize_chat_format(other, "chat_template.jinja"); });
    EXPECT_NE(text.find("Unsupported chat_template.jinja: "), std::string::npos) << other << text;
  }
}

TEST(ChatFormat, TrainsOnTheAnswersOnly) {
  const auto tokenizer = load_tokenizer(test::golden("tokenizers") / "smollm2");
  const auto chat = encode_chat(*tokenizer, ChatFormat::ChatMl, kTalk);
  ASSERT_EQ(chat.ids.size(), chat.labels.size());
  EXPECT_EQ(tokenizer->decode(chat.ids, false), format_chat(ChatFormat::ChatMl, kTalk));
  std::vector<std::int64_t> trained;
  for (const auto label : chat.labels) {
    if (label != -100) trained.push_back(label);
  }
  EXPECT_EQ(tokenizer->decode(trained, false), "Hello.<|im_end|>So long<|im_end|>");
}

TEST(ChatFormat, MasksThePromptOfACompletion) {
  auto tokenizer = load_tokenizer(test::golden("tokenizers") / "smollm2");
  const CompletionTags tags;
  EXPECT_EQ(tokenizer->add_special_tokens({.additional = tags.all()}), 4U);
  const auto prompt = format_completion_prompt("2+2?");
  EXPECT_EQ(prompt, "<START_Q>2+2?<END_Q><START_A>");
  EXPECT_EQ(format_completion("2+2?", "4"), prompt + "4<END_A>");
  const auto row = encode_completion(*tokenizer, prompt, "4<END_A>");
  EXPECT_EQ(row.ids.size(), 9U);
  EXPECT_EQ(row.labels, (std::vector<std::int64_t>{-100, -100, -100, -100, -100, -100, -100,
                                                   row.ids[7], row.ids[8]}));
  EXPECT_EQ(encode_completion(*tokenizer, prompt, "4<END_A>", 8).labels.size(), 8U);
}

TEST(StreamDecoder, WaitsForWholeCharacters) {
  const auto tokenizer = load_tokenizer(test::golden("tokenizers") / "gpt2");
  const auto ids = tokenizer->encode("a\xF0\x9F\xA6\x8A.");
  ASSERT_GT(ids.size(), 4U);
  const auto last = ids.size() - 1;
  StreamDecoder stream{*tokenizer};
  EXPECT_EQ(stream.push(ids[0]), "a");
  for (std::size_t i = 1; i + 1 < last; ++i) EXPECT_EQ(stream.push(ids[i]), "");
  EXPECT_EQ(stream.push(ids[last - 1]), "\xF0\x9F\xA6\x8A");
  EXPECT_EQ(stream.push(ids[1]), "");
  EXPECT_EQ(stream.finish(), "\xEF\xBF\xBD");
  EXPECT_EQ(stream.push(ids[last]), ".");
}

TEST(StreamDecoder, KeepsTheSpaceBehindAPrompt) {
  const auto tokenizer = load_tokenizer(test::golden("tokenizers") / "sentencepiece_bpe");
  const auto prompt = tokenizer->encode("the light"), all = tokenizer->encode("the light and");
  const auto added = std::span{all}.subspan(prompt.size());
  StreamDecoder behind{*tokenizer, prompt}, alone{*tokenizer};
  std::string one, other;
  for (const auto id : added) {
    one += behind.push(id);
    other += alone.push(id);
  }
  EXPECT_EQ(one, " and");
  EXPECT_EQ(other, "and");
}

TEST(StreamDecoder, GivesUpOnBytesThatNeverBecomeACharacter) {
  const auto tokenizer = load_tokenizer(test::golden("tokenizers") / "gpt2");
  const auto broken = tokenizer->encode("\xF0\x9F\xA6\x8A").front();
  StreamDecoder stream{*tokenizer};
  std::string text;
  for (int i = 0; i < 100; ++i) text += stream.push(broken);
  EXPECT_GT(text.size(), 3U * 60);
}

}  // namespace
}  // namespace troupe
