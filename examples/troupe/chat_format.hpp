#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace troupe {

class Tokenizer;

struct ChatMessage {
  std::string role;  ///< "system", "user" or "assistant"
  std::string content;
};

/// Formats that are known; the models' own Jinja templates are recognised, not executed.
enum class ChatFormat : std::uint8_t {
  ChatMl,   ///< <|im_start|>role\ncontent<|im_end|>\n
  SmolLm2,  ///< ChatMl, with SmolLM2's system message where the messages have none
  Llama2,   ///< <s>[INST] <<SYS>>\nsystem\n<</SYS>>\n\nuser [/INST] assistant </s>
};

/// The format that a `chat_template` stands for. Throws Failure{Unsupported} for one that is not
/// known, and says what to do. `where` (a file, say) goes into the text.
[[nodiscard]] ChatFormat recognize_chat_format(std::string_view jinja,
                                               std::string_view where = "chat_template");

/// The conversation as text, with its special tokens spelled out: encode it with add_special_tokens
/// = false.
/// @param add_generation_prompt ends with what an answer begins with.
/// Throws Failure{InvalidArgument} for an unknown role, or roles in an order that the format has
/// not.
[[nodiscard]] std::string format_chat(ChatFormat format, std::span<const ChatMessage> messages,
                                      bool add_generation_prompt = false);

/// Ids of a conversation and what a model is trained on: the assistant's answers with the token
/// that ends each, all else -100. `labels` is as long as `ids`.
struct LabeledTokens {
  std::vector<std::int64_t> ids;
  std::vector<std::int64_t> labels;
};
[[nodiscard]] LabeledTokens encode_chat(const Tokenizer& tokenizer, ChatFormat format,
                                        std::span<const ChatMessage> messages);

/// Tags round question and answer in completion data; as tokens of their own they are added by
/// add_special_tokens({.additional = tags.all()}).
struct CompletionTags {
  std::string question_begin = "<START_Q>", question_end = "<END_Q>";
  std::string answer_begin = "<START_A>", answer_end = "<END_A>";
  [[nodiscard]] std::vector<std::string> all() const {
    return {question_begin, question_end, answer_begin, answer_end};
  }
};

/// <START_Q>question<END_Q><START_A>answer<END_A>
[[nodiscard]] std::string format_completion(std::string_view question, std::string_view answer,
                                            const CompletionTags& tags = {});
/// The same up to and with <START_A>: what a trained model goes on from.
[[nodiscard]] std::string format_completion_prompt(std::string_view question,
                                                   const CompletionTags& tags = {});

/// Ids of `prompt + answer` as one text, with the tokenizer's special tokens; labels are -100 up to
/// where the ids of the prompt alone end.
[[nodiscard]] LabeledTokens encode_completion(const Tokenizer& tokenizer, std::string_view prompt,
                                              std::string_view answer, std::size_t max_length = 0);

}  // namespace troupe
