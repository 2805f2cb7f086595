#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <troupe/chat_format.hpp>
#include <troupe/sequence_batching.hpp>
#include <troupe/tokenizer.hpp>
#include <vector>

// Text that a language model is fine-tuned on: from files to rows of token ids.

namespace troupe {

/// A text, or a question and its answer (`prompt` not empty), or a conversation (`messages` not empty).
struct TextExample {
  std::string prompt;
  std::string text;
  std::vector<ChatMessage> messages;
};

/// Reads a data set, by the file's ending.
///
/// `.jsonl`: an object a line, of one of these kinds; other keys are left alone.
///   {"question": …, "answer": …}          GSM8K; becomes <START_Q>question<END_Q><START_A>answer<END_A>
///   {"input": …}                          the same already put together, as the Ray template writes it; or any text
///   {"prompt": …, "completion": …}
///   {"messages": [{"role": …, "content": …}, …]}
///   {"text": …}
/// Anything else is plain text: documents, with a blank line between them.
///
/// Throws Failure{FileNotFound}, {DataMalformed} naming file and line: no JSON, no known kind, an empty or no text, bytes that are
/// no UTF-8; a file without a single example.
[[nodiscard]] std::vector<TextExample> read_text_examples(const std::filesystem::path& file, const CompletionTags& tags = {});

enum class Packing : std::uint8_t {
  None,   ///< an example a row, padded to the longest of its batch; longer ones are cut
  Split,  ///< examples end to end, cut wherever a row is full; no padding
  Whole   ///< whole examples that fit in one row together and do not see each other
};

struct RowOptions {
  std::size_t context_length = 512;
  Packing packing = Packing::None;
  bool mask_prompt = false;  ///< the loss leaves out questions, and what is not the assistant's
};

/// Token ids of one row of a batch. `segment_ids` and `position_ids` only with Packing::Whole.
struct TokenRow {
  std::vector<std::int64_t> ids, labels;
  std::vector<std::int32_t> segment_ids;
  std::vector<std::int64_t> position_ids;
};

/// Each example ends with the tokenizer's eos. A conversation is written in the format of the tokenizer's chat template.
/// Throws Failure{Unsupported} for a chat template that is not known, {DataMalformed} when nothing is left to train on.
[[nodiscard]] std::vector<TokenRow> make_rows(const Tokenizer& tokenizer, const std::vector<TextExample>& examples, const RowOptions& options);

/// What rows are padded with: the tokenizer's pad, else eos, else 0.
[[nodiscard]] std::int64_t pad_id_of(const Tokenizer& tokenizer);

/// The tags in `json_file`: {"tokens": [four tags]}, as the Ray template's tokens.json, or {"special_tokens": […]}, in the order
/// <START_Q>, <END_Q>, <START_A>, <END_A>. Throws Failure{FileNotFound, InvalidConfig} naming file and key.
[[nodiscard]] CompletionTags read_completion_tags(const std::filesystem::path& json_file);

}  // namespace troupe
