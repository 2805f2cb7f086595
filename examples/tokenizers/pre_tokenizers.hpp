#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "json_section.hpp"

namespace troupe::detail {

struct Range {
  std::uint32_t begin = 0, end = 0;
};

/// A text on its way through the pre-tokenizers: the pieces it is cut into so far. What lies
/// between pieces is dropped.
struct Pieces {
  std::string_view text;
  std::vector<Range> ranges;
  bool at_start = true;  ///< the first piece begins where the whole input does, not after an added
                         ///< token or dropped text

  std::vector<Range> next;     ///< of the step that runs
  std::string storage, spare;  ///< behind `text`, once a step has rewritten it

  void begin(std::string_view whole, bool starts_input);
  /// Replaces every piece by what `cut(piece, out)` appends.
  template <class F>
  void split(F&& cut) {
    next.clear();
    const auto first = ranges.empty() ? 0 : ranges.front().begin;
    for (const auto range : ranges) cut(range, next);
    ranges.swap(next);
    at_start = at_start && !ranges.empty() && ranges.front().begin == first;
  }
  /// Rewrites every piece: `write(piece's text, is first, out)` appends its new text.
  template <class F>
  void rewrite(F&& write) {
    spare.clear();
    for (auto& range : ranges) {
      const auto from = static_cast<std::uint32_t>(spare.size());
      write(text.substr(range.begin, range.end - range.begin), &range == &ranges.front(), spare);
      range = {from, static_cast<std::uint32_t>(spare.size())};
    }
    storage.swap(spare);
    text = storage;
  }
};

/// Longest text between two added tokens that is taken: ranges are 32 bits.
inline constexpr std::size_t kMaxTextBytes = 1'000'000'000;

class PreTokenizer {
 public:
  virtual ~PreTokenizer() = default;
  virtual void run(Pieces& pieces) const = 0;
};

/// The steps of a `pre_tokenizer` section, in order.
struct PreTokenizers {
  std::vector<std::unique_ptr<PreTokenizer>> steps;
  bool spell_bytes = false;  ///< last, each byte becomes a character (ByteLevel); left to the
                             ///< model, which sees fewer words
  bool bert = false;         ///< BertPreTokenizer and nothing else
  /// ByteLevel's setting where there is one, which tokenizer_config.json may contradict.
  std::optional<bool> add_prefix_space;
};
[[nodiscard]] PreTokenizers read_pre_tokenizer(JsonSection section);

/// GPT-2's pattern: contractions, letters, digits and others with the space before them, white
/// space.
void split_gpt2(std::string_view text, Range range, std::vector<Range>& out);
/// The pattern of GPT-4 and Llama-3 (at most 3 digits together) and Qwen2 (1): case-blind
/// contractions, letters with one character before them, line breaks apart.
void split_gpt4(std::string_view text, Range range, std::size_t max_digits,
                std::vector<Range>& out);

}  // namespace troupe::detail
