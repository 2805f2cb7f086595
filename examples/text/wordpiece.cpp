#include <algorithm>
#include <array>
#include <troupe/errors.hpp>
#include <troupe/wordpiece.hpp>
#include <unordered_map>

#include "bert_normalizer.hpp"

namespace troupe {
namespace {

constexpr std::size_t kMaxWordChars =
    100;  // longer words are unknown; the reference's max_input_chars_per_word

struct Piece {
  std::int64_t id = 0;
  std::int64_t begin = 0;
  std::int64_t end = 0;
};

[[noreturn]] void refuse(const std::string& text) { throw Failure{Errc::InvalidArgument, text}; }

void replace_all(std::string& text, std::string_view from, std::string_view to) {
  for (auto at = text.find(from); at != std::string::npos; at = text.find(from, at + to.size())) {
    text.replace(at, from.size(), to);
  }
}

/// Spaces that English puts nowhere; the reference applies it to one piece at a time.
void clean_up(std::string& piece) {
  constexpr std::array<std::pair<std::string_view, std::string_view>, 11> rules{
      {{" .", "."},
       {" ?", "?"},
       {" !", "!"},
       {" ,", ","},
       {" ' ", "'"},
       {" n't", "n't"},
       {" 'm", "'m"},
       {" do not", " don't"},
       {" 's", "'s"},
       {" 've", "'ve"},
       {" 're", "'re"}}};
  for (const auto& [from, to] : rules) replace_all(piece, from, to);
}

}  // namespace

struct WordPiece::Impl {
  std::vector<std::string> vocabulary;
  WordPieceOptions options;
  detail::NormalizerOptions normalizer;
  std::unordered_map<std::string_view, std::int64_t> ids;  // of whole pieces, "##ing" included
  std::unordered_map<std::string_view, std::int64_t> continuations;  // "ing"
  std::size_t longest_piece = 0;                                     // bytes
  std::vector<std::pair<std::string_view, std::int64_t>> specials;
  std::int64_t unk = 0, sep = 0, pad = 0, cls = 0;

  Impl(std::vector<std::string> words, WordPieceOptions o)
      : vocabulary(std::move(words)), options(std::move(o)) {
    normalizer = {options.do_lower_case, options.strip_accents.value_or(options.do_lower_case),
                  options.tokenize_chinese_chars};
    for (std::size_t i = 0; i < vocabulary.size(); ++i) {
      const std::string_view word = vocabulary[i];
      ids.insert_or_assign(word, static_cast<std::int64_t>(i));
      if (word.starts_with("##"))
        continuations.insert_or_assign(word.substr(2), static_cast<std::int64_t>(i));
      longest_piece = std::max(longest_piece, word.size());
    }
    unk = add_special(options.unk_token);
    sep = add_special(options.sep_token);
    pad = add_special(options.pad_token);
    cls = add_special(options.cls_token);
    if (ids.contains(options.mask_token)) (void)add_special(options.mask_token);
  }

  std::int64_t add_special(const std::string& token) {
    const auto found = ids.find(token);
    if (found == ids.end()) refuse("the vocabulary lacks the special token '" + token + "'");
    specials.emplace_back(found->first, found->second);
    return found->second;
  }

  [[nodiscard]] bool is_special(std::int64_t id) const {
    return std::ranges::any_of(specials, [id](const auto& s) { return s.second == id; });
  }

  /// Greedy longest match from the left; a word with a part that matches nothing is unknown as a
  /// whole.
  void add_word(const std::vector<detail::SourcedChar>& text, std::size_t begin, std::size_t end,
                std::vector<Piece>& out) const {
    const auto piece = [&](std::int64_t id, std::size_t from, std::size_t to) {
      return Piece{id, text[from].source, text[to - 1].source + 1};
    };
    if (end - begin > kMaxWordChars) return out.push_back(piece(unk, begin, end));
    std::string word;
    std::array<std::size_t, kMaxWordChars + 1> byte_of{};  // where each character begins
    for (std::size_t i = begin; i < end; ++i) {
      byte_of[i - begin] = word.size();
      detail::append_utf8(word, text[i].code);
    }
    byte_of[end - begin] = word.size();
    const auto first_piece = out.size();
    for (std::size_t from = 0; from < end - begin;) {
      const auto& table = from == 0 ? ids : continuations;
      auto to = end - begin;
      while (to > from + 1 && byte_of[to] - byte_of[from] > longest_piece) --to;
      auto found = table.end();
      for (; to > from; --to) {
        found =
            table.find(std::string_view{word}.substr(byte_of[from], byte_of[to] - byte_of[from]));
        if (found != table.end()) break;
      }
      if (found == table.end()) {
        out.resize(first_piece);
        return out.push_back(piece(unk, begin, end));
      }
      out.push_back(piece(found->second, begin + from, begin + to));
      from = to;
    }
  }

  /// The first special token in `text`: where it is, and which; npos when there is none.
  [[nodiscard]] std::pair<std::size_t, std::size_t> find_special(std::string_view text) const {
    std::pair<std::size_t, std::size_t> best{std::string_view::npos, 0};
    for (std::size_t i = 0; i < specials.size(); ++i) {
      const auto at = text.find(specials[i].first);
      const bool longer = at == best.first && at != std::string_view::npos &&
                          specials[i].first.size() > specials[best.second].first.size();
      if (at < best.first || longer) best = {at, i};
    }
    return best;
  }

  [[nodiscard]] std::vector<Piece> pieces(std::string_view text) const {
    std::vector<Piece> out;
    std::int64_t source = 0;
    for (;;) {
      const auto [at, which] = find_special(text);
      const auto plain = text.substr(0, at);
      const auto chars = detail::normalize(plain, normalizer, source);
      for (const auto& [begin, end] : detail::split_words(chars)) add_word(chars, begin, end, out);
      if (at == std::string_view::npos) return out;
      source += detail::count_code_points(plain);
      const auto length = detail::count_code_points(specials[which].first);
      out.push_back({specials[which].second, source, source + length});
      source += length;
      text.remove_prefix(at + specials[which].first.size());
    }
  }

  void append(Encoding& out, const std::vector<Piece>& pieces, std::int64_t type) const {
    const auto add = [&](const Piece& p) {
      out.ids.push_back(p.id);
      out.type_ids.push_back(type);
      out.attention_mask.push_back(1);
      out.tokens.push_back(vocabulary[static_cast<std::size_t>(p.id)]);
      out.offsets.emplace_back(p.begin, p.end);
    };
    if (out.ids.empty()) add({cls, 0, 0});
    for (const auto& p : pieces) add(p);
    add({sep, 0, 0});
  }
};

namespace {

/// How many pieces of each side stay so that both together have `limit`; the reference's rules.
std::pair<std::size_t, std::size_t> keep_longest_first(std::size_t a, std::size_t b,
                                                       std::size_t limit) {
  const auto [less, more] = std::minmax(a, b);
  auto n1 = less;
  auto n2 = n1 > limit ? n1 : std::max(n1, limit - n1);
  if (n1 + n2 > limit) {
    n1 = limit / 2;
    n2 = n1 + limit % 2;
  }
  n2 = std::min(n2, more);
  return a > b ? std::pair{n2, n1} : std::pair{n1, n2};
}

void truncate(std::vector<Piece>& first, std::vector<Piece>* second, std::size_t limit,
              WordPiece::Truncation how) {
  const auto total = first.size() + (second ? second->size() : 0);
  if (total <= limit) return;
  const auto excess = total - limit;
  if (how == WordPiece::Truncation::LongestFirst) {
    if (!second) return first.resize(limit);
    const auto [a, b] = keep_longest_first(first.size(), second->size(), limit);
    first.resize(a);
    return second->resize(b);
  }
  const bool only_first = how == WordPiece::Truncation::OnlyFirst;
  if (!only_first && !second)
    refuse("only_second truncates the second text, but there is one text only");
  auto& side = only_first ? first : *second;
  if (side.size() <= excess) {
    refuse(std::string(only_first ? "the first" : "the second") + " text has " +
           std::to_string(side.size()) + " pieces, too few to cut " + std::to_string(excess) +
           " off; use LongestFirst or a larger max_length");
  }
  side.resize(side.size() - excess);
}

std::size_t content_limit(std::size_t max_length, std::size_t specials) {
  if (max_length < specials) {
    refuse("max_length " + std::to_string(max_length) + " cannot hold the " +
           std::to_string(specials) + " special tokens");
  }
  return max_length - specials;
}

}  // namespace

WordPiece::WordPiece(std::vector<std::string> vocabulary, WordPieceOptions options)
    : impl_(std::make_unique<Impl>(std::move(vocabulary), std::move(options))) {}
WordPiece::~WordPiece() = default;
WordPiece::WordPiece(WordPiece&&) noexcept = default;
WordPiece& WordPiece::operator=(WordPiece&&) noexcept = default;

WordPiece::Encoding WordPiece::encode(std::string_view text, std::size_t max_length,
                                      Truncation truncation) const {
  auto pieces = impl_->pieces(text);
  if (max_length != 0 && truncation != Truncation::None)
    truncate(pieces, nullptr, content_limit(max_length, 2), truncation);
  Encoding out;
  impl_->append(out, pieces, 0);
  return out;
}

WordPiece::Encoding WordPiece::encode(std::string_view first, std::string_view second,
                                      std::size_t max_length, Truncation truncation) const {
  if (second.empty()) return encode(first, max_length, truncation);
  auto a = impl_->pieces(first);
  auto b = impl_->pieces(second);
  if (max_length != 0 && truncation != Truncation::None)
    truncate(a, &b, content_limit(max_length, 3), truncation);
  Encoding out;
  impl_->append(out, a, 0);
  impl_->append(out, b, 1);
  return out;
}

void WordPiece::pad(Encoding& encoding, std::size_t length) const {
  if (length <= encoding.ids.size()) return;
  encoding.ids.resize(length, impl_->pad);
  encoding.type_ids.resize(length, 0);
  encoding.attention_mask.resize(length, 0);
  encoding.tokens.resize(length, impl_->options.pad_token);
  encoding.offsets.resize(length, {0, 0});
}

void WordPiece::pad(std::span<Encoding> encodings, std::size_t multiple_of) const {
  std::size_t longest = 0;
  for (const auto& e : encodings) longest = std::max(longest, e.ids.size());
  if (multiple_of > 1) longest = (longest + multiple_of - 1) / multiple_of * multiple_of;
  for (auto& e : encodings) pad(e, longest);
}

std::string WordPiece::decode(const std::vector<std::int64_t>& ids,
                              bool skip_special_tokens) const {
  std::string out;
  for (const auto id : ids) {
    if (id < 0 || static_cast<std::size_t>(id) >= impl_->vocabulary.size()) continue;
    if (skip_special_tokens && impl_->is_special(id)) continue;
    const auto& token = impl_->vocabulary[static_cast<std::size_t>(id)];
    std::string piece = out.empty()               ? token
                        : token.starts_with("##") ? token.substr(2)
                                                  : " " + token;
    clean_up(piece);
    out += piece;
  }
  return out;
}

const std::string& WordPiece::token(std::int64_t id) const {
  if (id < 0 || static_cast<std::size_t>(id) >= impl_->vocabulary.size()) {
    refuse("token id " + std::to_string(id) + " is outside the vocabulary of " +
           std::to_string(impl_->vocabulary.size()));
  }
  return impl_->vocabulary[static_cast<std::size_t>(id)];
}

std::int64_t WordPiece::pad_id() const noexcept { return impl_->pad; }
std::size_t WordPiece::vocab_size() const noexcept { return impl_->vocabulary.size(); }
const WordPieceOptions& WordPiece::options() const noexcept { return impl_->options; }

}  // namespace troupe
