// Byte-pair encoding (Sennrich et al., arXiv 1508.07909) with the rules of Hugging Face's
// tokenizers.
#include <algorithm>
#include <array>
#include <queue>
#include <troupe/errors.hpp>

#include "models.hpp"
#include "unicode_text.hpp"

namespace troupe::detail {
namespace {

/// Merges by their two sides: open addressing, one cache line a look-up.
class MergeTable {
 public:
  struct Entry {
    std::uint64_t pair = kEmpty;
    std::uint32_t rank = 0;
    std::int32_t merged = 0;
  };

  explicit MergeTable(const std::vector<Merge>& merges) {
    std::size_t size = 16;
    while (size < merges.size() * 2 + 1) size *= 2;
    entries_.resize(size);
    std::uint32_t rank = 0;
    for (const auto& merge : merges) {
      auto& entry = entries_[place(key(merge.left, merge.right))];
      entry = {key(merge.left, merge.right), rank++,
               merge.merged};  // of two equal pairs the later one counts
    }
  }
  [[nodiscard]] const Entry* find(std::int32_t left, std::int32_t right) const {
    const auto& entry = entries_[place(key(left, right))];
    return entry.pair == kEmpty ? nullptr : &entry;
  }

 private:
  static constexpr std::uint64_t kEmpty = ~std::uint64_t{0};
  static std::uint64_t key(std::int32_t left, std::int32_t right) {
    return (static_cast<std::uint64_t>(static_cast<std::uint32_t>(left)) << 32) |
           static_cast<std::uint32_t>(right);
  }
  [[nodiscard]] std::size_t place(std::uint64_t pair) const {
    const auto mask = entries_.size() - 1;
    auto at = static_cast<std::size_t>(folded_product(pair, 0x9E3779B97F4A7C15U)) & mask;
    while (entries_[at].pair != kEmpty && entries_[at].pair != pair) at = (at + 1) & mask;
    return at;
  }
  std::vector<Entry> entries_;
};

constexpr std::size_t kShortWord =
    24;  // symbols up to which a plain search for the best pair is quicker than a queue

class Bpe final : public WordModel {
 public:
  Bpe(Vocabulary vocabulary, const std::vector<Merge>& merges, BpeOptions options)
      : WordModel(std::move(vocabulary)), merges_(merges), options_(std::move(options)) {
    if (options_.unk_token) unk_ = vocabulary_.find(*options_.unk_token);
    constexpr std::string_view digits = "0123456789ABCDEF";
    for (std::size_t byte = 0; byte < 256; ++byte)
      byte_ids_[byte] =
          vocabulary_.find(std::string("<0x") + digits[byte / 16] + digits[byte % 16] + ">");
  }

  void tokenize(std::string_view word, std::vector<std::int32_t>& out) const override {
    if (options_.ignore_merges) {
      if (const auto id = vocabulary_.find(word); id != Vocabulary::kNone) return out.push_back(id);
    }
    const auto first = out.size();
    append_symbols(word, out);
    if (out.size() - first <= kShortWord) {
      merge_short(first, out);
    } else {
      merge_long(first, out);
    }
  }
  [[nodiscard]] std::optional<std::string_view> unk_token() const override {
    return options_.unk_token;
  }
  [[nodiscard]] bool is_bpe() const override { return true; }

 private:
  /// The ids of the word's characters.
  void append_symbols(std::string_view word, std::vector<std::int32_t>& out) const {
    std::string decorated;
    bool unknown = false;  // an unknown token that waits for what follows
    for (std::size_t at = 0; at < word.size();) {
      const auto begin = at;
      (void)next_char(word, at);
      auto symbol = word.substr(begin, at - begin);
      const bool prefixed = begin > 0 && !options_.continuing_subword_prefix.empty();
      const bool suffixed = at == word.size() && !options_.end_of_word_suffix.empty();
      if (prefixed || suffixed) {
        decorated = (prefixed ? options_.continuing_subword_prefix : "") + std::string(symbol) +
                    (suffixed ? options_.end_of_word_suffix : "");
        symbol = decorated;
      }
      if (const auto id = vocabulary_.find(symbol); id != Vocabulary::kNone) {
        if (unknown) out.push_back(unk_);
        unknown = false;
        out.push_back(id);
      } else if (options_.byte_fallback && append_bytes(symbol, out)) {
        continue;
      } else if (options_.unk_token) {  // without one the character is dropped
        if (unk_ == Vocabulary::kNone) refuse_character(symbol);
        if (unknown && !options_.fuse_unk) out.push_back(unk_);
        unknown = true;
      }
    }
    if (unknown) out.push_back(unk_);
  }

  /// Byte-level files may name an unknown token that they neither have nor need.
  [[noreturn]] void refuse_character(std::string_view symbol) const {
    throw Failure{Errc::FileCorrupt, "the vocabulary has neither '" + std::string(symbol) +
                                         "' nor the model's unk_token '" +
                                         options_.unk_token.value_or("") + "'"};
  }

  bool append_bytes(std::string_view symbol, std::vector<std::int32_t>& out) const {
    const auto id_of = [this](char c) { return byte_ids_[static_cast<unsigned char>(c)]; };
    if (std::ranges::any_of(symbol, [&](char c) { return id_of(c) == Vocabulary::kNone; }))
      return false;
    for (const char c : symbol) out.push_back(id_of(c));
    return true;
  }

  void merge_short(std::size_t first, std::vector<std::int32_t>& out) const {
    auto count = out.size() - first;
    auto* const symbols = out.data() + first;
    std::array<const MergeTable::Entry*, kShortWord> pairs{};  // of symbol i and the next
    for (std::size_t i = 0; i + 1 < count; ++i) pairs[i] = merges_.find(symbols[i], symbols[i + 1]);
    while (count > 1) {
      std::size_t best = count;
      for (std::size_t i = 0; i + 1 < count; ++i) {
        if (pairs[i] && (best == count || pairs[i]->rank < pairs[best]->rank)) best = i;
      }
      if (best == count) break;
      symbols[best] = pairs[best]->merged;
      std::copy(symbols + best + 2, symbols + count, symbols + best + 1);
      std::copy(pairs.begin() + static_cast<std::ptrdiff_t>(best) + 2,
                pairs.begin() + static_cast<std::ptrdiff_t>(count),
                pairs.begin() + static_cast<std::ptrdiff_t>(best) + 1);
      --count;
      if (best > 0) pairs[best - 1] = merges_.find(symbols[best - 1], symbols[best]);
      pairs[best] = best + 1 < count ? merges_.find(symbols[best], symbols[best + 1]) : nullptr;
    }
    out.resize(first + count);
  }

  /// Symbols as a list, candidates in a queue: n log n for a whole document as one word, as
  /// Llama-2's files have it.
  void merge_long(std::size_t first, std::vector<std::int32_t>& out) const {
    struct Candidate {
      std::uint32_t rank = 0, at = 0;
      std::int32_t merged = 0;
      bool operator<(const Candidate& other) const {
        return rank != other.rank ? rank > other.rank : at > other.at;
      }
    };
    const auto count = static_cast<std::uint32_t>(out.size() - first);
    auto* const symbols = out.data() + first;
    constexpr std::int32_t gone = -1;
    std::vector<std::uint32_t> previous(count), next(count);
    std::priority_queue<Candidate> queue;
    const auto push = [&](std::uint32_t at, std::uint32_t after) {
      if (const auto* const entry = merges_.find(symbols[at], symbols[after]))
        queue.push({entry->rank, at, entry->merged});
    };
    for (std::uint32_t i = 0; i < count; ++i) {
      previous[i] = i - 1;
      next[i] = i + 1;
      if (i + 1 < count) push(i, i + 1);
    }
    while (!queue.empty()) {
      const auto top = queue.top();
      queue.pop();
      const auto after = next[top.at];
      if (symbols[top.at] == gone || after >= count) continue;
      const auto* const entry = merges_.find(symbols[top.at], symbols[after]);
      if (!entry || entry->merged != top.merged) continue;  // one of the two was merged meanwhile
      symbols[top.at] = top.merged;
      symbols[after] = gone;
      next[top.at] = next[after];
      if (next[after] < count) {
        previous[next[after]] = top.at;
        push(top.at, next[top.at]);
      }
      if (top.at > 0 && previous[top.at] < count) push(previous[top.at], top.at);
    }
    out.erase(std::remove(out.begin() + static_cast<std::ptrdiff_t>(first), out.end(), gone),
              out.end());
  }

  MergeTable merges_;
  BpeOptions options_;
  std::int32_t unk_ = Vocabulary::kNone;
  std::array<std::int32_t, 256> byte_ids_{};
};

}  // namespace

std::unique_ptr<WordModel> make_bpe(Vocabulary vocabulary, const std::vector<Merge>& merges,
                                    BpeOptions options) {
  return std::make_unique<Bpe>(std::move(vocabulary), merges, std::move(options));
}

}  // namespace troupe::detail
