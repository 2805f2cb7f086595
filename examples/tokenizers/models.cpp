#include "models.hpp"

#include <algorithm>
#include <troupe/errors.hpp>

#include "../text/wordpiece_model.hpp"

namespace troupe::detail {
namespace {

constexpr std::int64_t kMaxHoles = 1'000'000;  // ids without a token, which cost a few bytes each

/// The tokens of `vocab` in the order of their ids.
Vocabulary read_vocabulary(JsonSection& section) {
  const auto& object = section.value("vocab");
  if (!object.is_object()) section.corrupt("vocab", "should be an object of tokens and ids");
  std::vector<std::pair<std::int64_t, const std::string*>> entries;
  entries.reserve(object.size());
  const auto limit = static_cast<std::int64_t>(object.size()) + kMaxHoles;
  for (const auto& item : object.items()) {
    const auto& id = item.value();
    const bool fits =
        id.is_number_integer() && id.get<std::int64_t>() >= 0 && id.get<std::int64_t>() < limit;
    if (!fits) section.corrupt("vocab", "gives the token '" + item.key() + "' the id " + id.dump());
    entries.emplace_back(id.get<std::int64_t>(), &item.key());
  }
  std::ranges::sort(entries);
  Vocabulary out;
  for (const auto& [id, token] : entries) {
    if (id < static_cast<std::int64_t>(out.size()))
      section.corrupt("vocab", "gives the id " + std::to_string(id) + " to '" +
                                   std::string(out.token(static_cast<std::int32_t>(id))) +
                                   "' and '" + *token + "'");
    while (static_cast<std::int64_t>(out.size()) < id) out.add_hole();
    out.add(*token);
  }
  return out;
}

class WordPieceWords final : public WordModel {
 public:
  WordPieceWords(Vocabulary vocabulary, std::string unk, const std::string& prefix,
                 std::size_t max_chars)
      : WordModel(std::move(vocabulary)),
        unk_(std::move(unk)),
        model_(vocabulary_, vocabulary_.find(unk_), prefix, max_chars) {}
  void tokenize(std::string_view word, std::vector<std::int32_t>& out) const override {
    thread_local std::vector<WordPieceModel::Part> parts;
    parts.clear();
    model_.tokenize(word, parts);
    for (const auto& part : parts) out.push_back(part.id);
  }
  [[nodiscard]] std::optional<std::string_view> unk_token() const override { return unk_; }
  [[nodiscard]] bool is_bpe() const override { return false; }

 private:
  std::string unk_;
  WordPieceModel model_;
};

std::unique_ptr<WordModel> read_wordpiece(JsonSection& section) {
  auto vocabulary = read_vocabulary(section);
  auto unk = section.string_or_none("unk_token").value_or("[UNK]");
  const auto prefix = section.string_or_none("continuing_subword_prefix").value_or("##");
  const auto max_chars = section.integer("max_input_chars_per_word", 100);
  if (max_chars < 0) section.corrupt("max_input_chars_per_word", "is negative");
  if (vocabulary.find(unk) == Vocabulary::kNone)
    section.corrupt("unk_token", "'" + unk + "' is not in the vocabulary");
  return std::make_unique<WordPieceWords>(std::move(vocabulary), std::move(unk), prefix,
                                          static_cast<std::size_t>(max_chars));
}

/// A merge is ["a", "b"], or "a b" in older files.
std::pair<std::string_view, std::string_view> sides_of(JsonSection& section,
                                                       const nlohmann::json& merge,
                                                       std::size_t rank) {
  const auto refuse = [&] {
    section.corrupt("merges",
                    "has at " + std::to_string(rank) + " what is no pair of tokens: " +
                        merge.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace));
  };
  if (merge.is_array() && merge.size() == 2 && merge[0].is_string() && merge[1].is_string())
    return {merge[0].get_ref<const std::string&>(), merge[1].get_ref<const std::string&>()};
  if (!merge.is_string()) refuse();
  const std::string_view text = merge.get_ref<const std::string&>();
  const auto space = text.find(' ');
  if (space == std::string_view::npos || text.find(' ', space + 1) != std::string_view::npos)
    refuse();
  return {text.substr(0, space), text.substr(space + 1)};
}

std::vector<Merge> read_merges(JsonSection& section, const Vocabulary& vocabulary,
                               const std::string& prefix) {
  const auto& list = section.value("merges");
  if (!list.is_array()) section.corrupt("merges", "should be a list");
  std::vector<Merge> out;
  out.reserve(list.size());
  std::string merged;
  for (const auto& item : list) {
    const auto [left, right] = sides_of(section, item, out.size());
    if (right.size() < prefix.size())
      section.corrupt("merges", "has at " + std::to_string(out.size()) +
                                    " a right side shorter than continuing_subword_prefix");
    merged.assign(left).append(right.substr(prefix.size()));
    const Merge merge{vocabulary.find(left), vocabulary.find(right), vocabulary.find(merged)};
    for (const auto& [id, token] : {std::pair{merge.left, left},
                                    {merge.right, right},
                                    {merge.merged, std::string_view{merged}}}) {
      if (id == Vocabulary::kNone)
        section.corrupt("merges", "has at " + std::to_string(out.size()) + " the token '" +
                                      std::string(token) + "', which is not in the vocabulary");
    }
    out.push_back(merge);
  }
  return out;
}

std::unique_ptr<WordModel> read_bpe(JsonSection& section) {
  auto vocabulary = read_vocabulary(section);
  BpeOptions options;
  options.unk_token = section.string_or_none("unk_token");
  options.continuing_subword_prefix =
      section.string_or_none("continuing_subword_prefix").value_or("");
  options.end_of_word_suffix = section.string_or_none("end_of_word_suffix").value_or("");
  options.fuse_unk = section.boolean("fuse_unk", false);
  options.byte_fallback = section.boolean("byte_fallback", false);
  options.ignore_merges = section.boolean("ignore_merges", false);
  if (section.has("dropout") && section.value("dropout") != 0)
    section.unsupported("dropout", "is not supported: the same text would get other ids each time");
  section.ignore("dropout");
  const auto merges = read_merges(section, vocabulary, options.continuing_subword_prefix);
  return make_bpe(std::move(vocabulary), merges, std::move(options));
}

}  // namespace

std::unique_ptr<WordModel> read_model(JsonSection section) {
  // Files of old have no type: only BPE has merges.
  const auto type =
      section.string_or_none("type").value_or(section.has("merges") ? "BPE" : "WordPiece");
  std::unique_ptr<WordModel> out;
  if (type == "WordPiece") {
    out = read_wordpiece(section);
  } else if (type == "BPE") {
    out = read_bpe(section);
  } else {
    section.unsupported(
        "type", "'" + type + "' is not supported; there are: BPE WordPiece" +
                    (type == "Unigram" ? std::string(". Load the tokenizer.model it was made from")
                                       : std::string()));
  }
  section.finish();
  return out;
}

}  // namespace troupe::detail
