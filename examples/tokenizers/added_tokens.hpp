#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace troupe::detail {

class Normalizer;

/// A token that is taken whole out of texts, before the model sees them.
struct AddedToken {
  std::string content;
  std::int32_t id = 0;
  bool single_word = false;  ///< not inside a word
  bool lstrip = false;       ///< takes the white space before it
  bool rstrip = false;       ///< and after it
  bool normalized = false;   ///< looked for in normalised text
  bool special = false;      ///< left out by decode
  std::string shown =
      {};  ///< what decode writes: `content`, normalised where `normalized`; set by AddedTokens
};

/// Finds the leftmost, then longest, of some tokens.
class TokenMatcher {
 public:
  void add(std::string pattern, std::size_t token);
  [[nodiscard]] bool empty() const { return patterns_.empty(); }
  struct Match {
    std::size_t begin = 0, end = 0, token = 0;
  };
  [[nodiscard]] std::optional<Match> find(std::string_view text, std::size_t from) const;

 private:
  std::unordered_map<std::string, std::size_t> patterns_;
  std::array<std::vector<std::size_t>, 256> lengths_;  // by first byte, longest first
};

/// The added tokens of a tokenizer, by the rules of Hugging Face's tokenizers.
///
/// Threads: const members, any number at once.
class AddedTokens {
 public:
  /// A token of an id already there is replaced.
  void add(AddedToken token);
  /// Lets `find` know the last one; cheaper than `prepare`, which must still follow.
  void index(std::int32_t id);
  /// Must follow the last `add`; `normalizer` may be nullptr.
  void prepare(const Normalizer* normalizer);

  [[nodiscard]] const AddedToken* find(std::string_view content) const;
  [[nodiscard]] const AddedToken* find_id(std::int64_t id) const;
  [[nodiscard]] const std::map<std::int32_t, AddedToken>& by_id() const { return by_id_; }

  [[nodiscard]] bool has_normalized() const { return !normalized_.empty(); }

  /// Calls `text(piece, offset)` and `token(id)` for the parts of `whole`, in order; tokens that
  /// are looked for in raw text.
  template <class T, class U>
  void split_raw(std::string_view whole, T&& text, U&& token) const {
    split(raw_, whole, text, token);
  }
  /// The same for tokens that are looked for in normalised text.
  template <class T, class U>
  void split_normalized(std::string_view whole, T&& text, U&& token) const {
    split(normalized_, whole, text, token);
  }

 private:
  /// Where the match begins and ends once white space is taken; nothing when it is inside a word.
  [[nodiscard]] std::optional<TokenMatcher::Match> settle(std::string_view whole,
                                                          TokenMatcher::Match match,
                                                          std::size_t from) const;

  template <class T, class U>
  void split(const TokenMatcher& matcher, std::string_view whole, T&& text, U&& token) const {
    std::size_t done = 0;
    if (!matcher.empty()) {
      for (std::size_t from = 0;;) {
        const auto found = matcher.find(whole, from);
        if (!found) break;
        from = found->end;
        const auto match = settle(whole, *found, done);
        if (!match) continue;
        if (done < match->begin) text(whole.substr(done, match->begin - done), done);
        token(tokens_[match->token]->id);
        done = match->end;
      }
    }
    if (done < whole.size()) text(whole.substr(done), done);
  }

  std::map<std::int32_t, AddedToken> by_id_;
  std::unordered_map<std::string_view, const AddedToken*> by_content_;
  std::vector<const AddedToken*> tokens_;
  TokenMatcher raw_, normalized_;
};

}  // namespace troupe::detail
