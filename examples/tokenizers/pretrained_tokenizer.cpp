#include "pretrained_tokenizer.hpp"

#include <algorithm>
#include <troupe/errors.hpp>

#include "../text/truncation.hpp"

namespace troupe::detail {

std::optional<std::int64_t> PretrainedTokenizer::token_to_id(std::string_view token) const {
  if (const auto* const added = added_.find(token)) return added->id;
  return model_id(token);
}

std::string PretrainedTokenizer::id_to_token(std::int64_t id) const {
  if (const auto* const added = added_.find_id(id)) return added->content;
  if (auto token = model_token(id)) return *std::move(token);
  throw Failure{Errc::InvalidArgument, "no token has the id " + std::to_string(id) +
                                           "; there are ids up to " +
                                           std::to_string(vocab_size() - 1)};
}

std::size_t PretrainedTokenizer::vocab_size() const noexcept {
  const auto added =
      added_.by_id().empty() ? 0 : static_cast<std::size_t>(added_.by_id().rbegin()->first) + 1;
  return std::max(model_size(), added);
}

bool PretrainedTokenizer::is_special(std::int64_t id) const noexcept {
  const auto* const added = added_.find_id(id);
  return added && added->special;
}

std::int32_t PretrainedTokenizer::id_for(std::string_view content) const {
  if (const auto id = token_to_id(content)) return static_cast<std::int32_t>(*id);
  const auto count = static_cast<std::int32_t>(model_count());
  if (added_.by_id().empty()) return count;
  const auto last = added_.by_id().rbegin()->first;
  return last >= count ? last + 1 : count;
}

bool PretrainedTokenizer::make_special(const std::string& content) {
  if (content.empty()) throw Failure{Errc::InvalidArgument, "an empty text is no special token"};
  const bool is_new = !token_to_id(content);
  AddedToken token{content, id_for(content)};
  if (const auto* const known = added_.find(content)) token = *known;
  token.special = true;
  const auto id = token.id;
  added_.add(std::move(token));
  added_.index(id);
  return is_new;
}

std::size_t PretrainedTokenizer::add_special_tokens(const SpecialTokens& tokens) {
  std::size_t added = 0;
  auto& mine = config_.tokens;
  constexpr std::optional<std::string> SpecialTokens::*roles[] = {
      &SpecialTokens::bos, &SpecialTokens::eos, &SpecialTokens::unk, &SpecialTokens::sep,
      &SpecialTokens::pad, &SpecialTokens::cls, &SpecialTokens::mask};
  for (const auto role : roles) {
    if (!(tokens.*role)) continue;
    added += make_special(*(tokens.*role)) ? 1 : 0;
    mine.*role = tokens.*role;
  }
  for (const auto& token : tokens.additional) {
    added += make_special(token) ? 1 : 0;
    if (std::ranges::find(mine.additional, token) == mine.additional.end())
      mine.additional.push_back(token);
  }
  prepare_added();
  return added;
}

void PretrainedTokenizer::add_configured_tokens() {
  for (const auto& token : config_.added) {
    if (const auto* const known = added_.find(token.content)) {
      if (known->id != token.id) {
        throw Failure{Errc::FileCorrupt,
                      config_.file + ": added_tokens_decoder gives '" + token.content +
                          "' the id " + std::to_string(token.id) + ", the tokenizer's own file " +
                          std::to_string(known->id)};
      }
      continue;
    }
    const auto id = id_for(token.content);
    if (id != token.id) {
      throw Failure{Errc::FileCorrupt,
                    config_.file + ": '" + token.content + "' is said to have the id " +
                        std::to_string(token.id) + ", but it is " +
                        (token_to_id(token.content) ? "the model's token " : "added as ") +
                        std::to_string(id)};
    }
    added_.add(token);
    added_.index(id);
  }
  (void)add_special_tokens(SpecialTokens{config_.tokens});
}

void PretrainedTokenizer::apply_bos_eos(bool has_post_processor) {
  if (has_post_processor && !config_.add_bos && !config_.add_eos) return;
  const auto ids = special_ids();
  template_ = Template::bos_eos(config_.add_bos.value_or(false) ? ids.bos : std::nullopt,
                                config_.add_eos.value_or(false) ? ids.eos : std::nullopt);
}

void PretrainedTokenizer::append(std::string_view first, const std::string_view* second,
                                 const EncodeOptions& options, TokenBatch& out) const {
  thread_local std::vector<std::int64_t> first_ids, second_ids;
  first_ids.clear();
  second_ids.clear();
  append_ids(first, first_ids);
  if (second) append_ids(*second, second_ids);
  static const Template bare = Template::plain();
  const auto& chosen = options.add_special_tokens ? template_ : bare;
  const auto& items = second ? chosen.pair : chosen.single;
  const auto [keep_first, keep_second] =
      kept_lengths(first_ids.size(), second ? std::optional{second_ids.size()} : std::nullopt,
                   Template::num_special(items), options.max_length, options.truncation);
  for (const auto& item : items) {
    const auto* ids = &item.ids;
    std::size_t begin = 0, count = item.ids.size();
    if (item.kind != Template::Kind::Special) {
      ids = item.kind == Template::Kind::First ? &first_ids : &second_ids;
      count = item.kind == Template::Kind::First ? keep_first : keep_second;
      begin = config_.truncate_left ? ids->size() - count : 0;
    }
    const auto from = ids->begin() + static_cast<std::ptrdiff_t>(begin);
    out.ids.insert(out.ids.end(), from, from + static_cast<std::ptrdiff_t>(count));
    if (options.type_ids) out.type_ids.resize(out.ids.size(), item.type_id);
  }
  out.offsets.push_back(out.ids.size());
}

}  // namespace troupe::detail
