#include <algorithm>
#include <troupe/errors.hpp>
#include <troupe/wordpiece.hpp>

#include "bert_words.hpp"
#include "clean_up.hpp"
#include "truncation.hpp"
#include "wordpiece_model.hpp"

namespace troupe {
namespace {

struct Piece {
  std::int64_t id = 0;
  std::int64_t begin = 0;
  std::int64_t end = 0;
};

[[noreturn]] void refuse(const std::string& text) { throw Failure{Errc::InvalidArgument, text}; }

}  // namespace

struct WordPiece::Impl {
  std::vector<std::string> vocabulary;
  WordPieceOptions options;
  detail::NormalizerOptions normalizer;
  detail::Vocabulary ids;
  std::vector<std::pair<std::string_view, std::int64_t>> specials;
  std::int64_t unk = 0, sep = 0, pad = 0, cls = 0;
  std::optional<detail::WordPieceModel> model;

  Impl(std::vector<std::string> words, WordPieceOptions o)
      : vocabulary(std::move(words)), options(std::move(o)) {
    normalizer = {options.do_lower_case, options.strip_accents.value_or(options.do_lower_case),
                  options.tokenize_chinese_chars};
    for (const auto& word : vocabulary) ids.add(word);
    unk = add_special(options.unk_token);
    sep = add_special(options.sep_token);
    pad = add_special(options.pad_token);
    cls = add_special(options.cls_token);
    if (ids.find(options.mask_token) >= 0) (void)add_special(options.mask_token);
    model.emplace(ids, static_cast<std::int32_t>(unk));
  }

  std::int64_t add_special(const std::string& token) {
    const auto found = ids.find(token);
    if (found < 0) refuse("the vocabulary lacks the special token '" + token + "'");
    specials.emplace_back(vocabulary[static_cast<std::size_t>(found)], found);
    return found;
  }

  [[nodiscard]] bool is_special(std::int64_t id) const {
    return std::ranges::any_of(specials, [id](const auto& s) { return s.second == id; });
  }

  /// The pieces of `plain`, in which no special token stands.
  void add_words(std::string_view plain, std::int64_t first_source, std::vector<Piece>& out) const {
    std::vector<detail::WordPieceModel::Part> parts;
    const auto add = [&](std::string_view word, auto&& source_of) {
      parts.clear();
      model->tokenize(word, parts);
      std::size_t at = 0;
      for (const auto& part : parts) {
        out.push_back({part.id, source_of(at), source_of(at + part.chars - 1) + 1});
        at += part.chars;
      }
    };
    std::string wide;
    detail::for_each_bert_word(
        plain, normalizer, first_source,
        [&](std::string_view word, std::int64_t source) {
          add(word, [source](std::size_t i) { return source + static_cast<std::int64_t>(i); });
        },
        [&](const std::vector<detail::SourcedChar>& chars, std::size_t begin, std::size_t end) {
          wide.clear();
          for (auto i = begin; i < end; ++i) detail::append_utf8(wide, chars[i].code);
          add(wide, [&](std::size_t i) { return chars[begin + i].source; });
        });
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
      add_words(plain, source, out);
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

WordPiece::WordPiece(std::vector<std::string> vocabulary, WordPieceOptions options)
    : impl_(std::make_unique<Impl>(std::move(vocabulary), std::move(options))) {}
WordPiece::~WordPiece() = default;
WordPiece::WordPiece(WordPiece&&) noexcept = default;
WordPiece& WordPiece::operator=(WordPiece&&) noexcept = default;

WordPiece::Encoding WordPiece::encode(std::string_view text, std::size_t max_length,
                                      Truncation truncation) const {
  auto pieces = impl_->pieces(text);
  pieces.resize(detail::kept_lengths(pieces.size(), std::nullopt, 2, max_length, truncation).first);
  Encoding out;
  impl_->append(out, pieces, 0);
  return out;
}

WordPiece::Encoding WordPiece::encode(std::string_view first, std::string_view second,
                                      std::size_t max_length, Truncation truncation) const {
  if (second.empty()) return encode(first, max_length, truncation);
  auto a = impl_->pieces(first);
  auto b = impl_->pieces(second);
  const auto [kept_a, kept_b] = detail::kept_lengths(a.size(), b.size(), 3, max_length, truncation);
  a.resize(kept_a);
  b.resize(kept_b);
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
    detail::clean_up_spaces(piece, true);  // the reference applies it to one piece at a time
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
