#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string_view>
#include <vector>

#include "../text/vocabulary.hpp"
#include "json_section.hpp"

namespace troupe::detail {

/// The part of a tokenizer that turns one word into ids; the `model` of a tokenizer.json.
///
/// Threads: const members, any number at once.
class WordModel {
 public:
  virtual ~WordModel() = default;
  /// Appends the ids of `word`, valid UTF-8, not empty.
  virtual void tokenize(std::string_view word, std::vector<std::int32_t>& out) const = 0;
  [[nodiscard]] virtual std::optional<std::string_view> unk_token() const = 0;
  /// BERT's decoders clean up spaces; transformers does so for all but BPE.
  [[nodiscard]] virtual bool is_bpe() const = 0;
  [[nodiscard]] const Vocabulary& vocabulary() const { return vocabulary_; }

 protected:
  explicit WordModel(Vocabulary vocabulary) : vocabulary_(std::move(vocabulary)) {}
  Vocabulary vocabulary_;
};

/// WordPiece or BPE. Throws Failure{Unsupported, FileCorrupt} naming the key.
[[nodiscard]] std::unique_ptr<WordModel> read_model(JsonSection section);

/// `merges` as pairs of tokens: BPE. In bpe.cpp.
struct BpeOptions {
  std::optional<std::string> unk_token;
  std::string continuing_subword_prefix, end_of_word_suffix;
  bool fuse_unk = false, byte_fallback = false, ignore_merges = false;
};
/// A merge by the ids of its two sides, in order of rank.
struct Merge {
  std::int32_t left = 0, right = 0, merged = 0;
};
[[nodiscard]] std::unique_ptr<WordModel> make_bpe(Vocabulary vocabulary,
                                                  const std::vector<Merge>& merges,
                                                  BpeOptions options);

}  // namespace troupe::detail
