#include "wordpiece_model.hpp"

#include <algorithm>

namespace troupe::detail {
namespace {

bool begins_char(char c) { return (static_cast<unsigned char>(c) & 0xC0) != 0x80; }

std::uint32_t count_chars(std::string_view text) {
  return static_cast<std::uint32_t>(std::ranges::count_if(text, begins_char));
}

}  // namespace

WordPieceModel::WordPieceModel(const Vocabulary& vocabulary, std::int32_t unk, std::string prefix,
                               std::size_t max_chars)
    : vocabulary_(&vocabulary), unk_(unk), prefix_(std::move(prefix)), max_chars_(max_chars) {
  for (std::size_t id = 0; id < vocabulary.size(); ++id) {
    const auto token = vocabulary.token(static_cast<std::int32_t>(id));
    // Of two equal tokens the one that the vocabulary finds counts.
    if (!vocabulary.has(static_cast<std::int64_t>(id)) || !token.starts_with(prefix_) ||
        vocabulary.find(token) != static_cast<std::int32_t>(id))
      continue;
    continuations_.add(token.substr(prefix_.size()));
    continuation_ids_.push_back(static_cast<std::int32_t>(id));
  }
}

void WordPieceModel::tokenize(std::string_view word, std::vector<Part>& out) const {
  const auto chars = count_chars(word);
  if (chars > max_chars_) return out.push_back({unk_, chars});
  const auto first_part = out.size();
  for (std::size_t from = 0; from < word.size();) {
    const auto& table = from == 0 ? *vocabulary_ : continuations_;
    auto size = std::min(word.size() - from, table.longest_bytes());
    auto found = Vocabulary::kNone;
    for (; size > 0; --size) {
      if (from + size < word.size() && !begins_char(word[from + size])) continue;
      found = table.find(word.substr(from, size));
      if (found != Vocabulary::kNone) break;
    }
    if (found == Vocabulary::kNone) {
      out.resize(first_part);
      return out.push_back({unk_, chars});
    }
    const auto id = from == 0 ? found : continuation_ids_[static_cast<std::size_t>(found)];
    out.push_back({id, count_chars(word.substr(from, size))});
    from += size;
  }
}

}  // namespace troupe::detail
