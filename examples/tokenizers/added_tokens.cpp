#include "added_tokens.hpp"

#include <algorithm>

#include "normalizers.hpp"
#include "unicode_text.hpp"

namespace troupe::detail {

void TokenMatcher::add(std::string pattern, std::size_t token) {
  if (pattern.empty()) return;
  auto& lengths = lengths_[static_cast<unsigned char>(pattern.front())];
  if (std::ranges::find(lengths, pattern.size()) == lengths.end()) {
    lengths.push_back(pattern.size());
    std::ranges::sort(lengths, std::greater<>{});
  }
  patterns_.try_emplace(std::move(pattern), token);
}

std::optional<TokenMatcher::Match> TokenMatcher::find(std::string_view text,
                                                      std::size_t from) const {
  for (auto at = from; at < text.size(); ++at) {
    for (const auto length : lengths_[static_cast<unsigned char>(text[at])]) {
      if (at + length > text.size()) continue;
      const auto found = patterns_.find(std::string(text.substr(at, length)));
      if (found != patterns_.end()) return Match{at, at + length, found->second};
    }
  }
  return std::nullopt;
}

void AddedTokens::add(AddedToken token) {
  const auto id = token.id;
  token.shown = token.content;
  by_id_.insert_or_assign(id, std::move(token));
}

void AddedTokens::index(std::int32_t id) {
  const auto& token = by_id_.at(id);
  by_content_.insert_or_assign(token.content, &token);
}

void AddedTokens::prepare(const Normalizer* normalizer) {
  by_content_.clear();
  tokens_.clear();
  raw_ = {};
  normalized_ = {};
  for (auto& [id, token] : by_id_) {
    by_content_.insert_or_assign(token.content, &token);
    token.shown = token.content;
    if (token.normalized && normalizer) normalizer->apply(token.shown);
    (token.normalized ? normalized_ : raw_).add(token.shown, tokens_.size());
    tokens_.push_back(&token);
  }
}

const AddedToken* AddedTokens::find(std::string_view content) const {
  const auto found = by_content_.find(content);
  return found == by_content_.end() ? nullptr : found->second;
}

const AddedToken* AddedTokens::find_id(std::int64_t id) const {
  if (id < 0 || id > INT32_MAX) return nullptr;
  const auto found = by_id_.find(static_cast<std::int32_t>(id));
  return found == by_id_.end() ? nullptr : &found->second;
}

std::optional<TokenMatcher::Match> AddedTokens::settle(std::string_view whole,
                                                       TokenMatcher::Match match,
                                                       std::size_t from) const {
  const auto& token = *tokens_[match.token];
  if (token.single_word) {
    auto before = match.begin, after = match.end;
    if (before > 0 && is_word_char(previous_char(whole, before))) return std::nullopt;
    if (after < whole.size() && is_word_char(next_char(whole, after))) return std::nullopt;
  }
  for (auto at = match.begin; token.lstrip && at > from; match.begin = at) {
    if (!is_space(previous_char(whole, at))) break;
  }
  for (auto at = match.end; token.rstrip && at < whole.size(); match.end = at) {
    if (!is_space(next_char(whole, at))) break;
  }
  return match;
}

}  // namespace troupe::detail
