#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace troupe {

class Tokenizer;

/// Text of ids that come one at a time, as `generate` makes them: whole characters only, at the
/// earliest id that settles them. What all calls return, joined, is `decode` of all ids.
///
/// Threads: one caller. The tokenizer must outlive it.
class StreamDecoder {
 public:
  /// @param before ids that the text goes on from (a prompt): the first new word then keeps the
  /// space before it.
  explicit StreamDecoder(const Tokenizer& tokenizer, std::span<const std::int64_t> before = {},
                         bool skip_special_tokens = true);

  /// The text that `id` completes; empty while a character is not whole.
  [[nodiscard]] std::string push(std::int64_t id);
  /// What is left, unfinished characters as U+FFFD. The next push begins a new text.
  [[nodiscard]] std::string finish();

 private:
  const Tokenizer* tokenizer_;
  bool skip_special_tokens_;
  std::vector<std::int64_t> window_;  // ids that may still change the text: a few at the end
  std::size_t settled_ = 0;           // ids of the window whose text was returned
};

}  // namespace troupe
