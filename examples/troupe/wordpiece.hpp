#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <troupe/tokenizer.hpp>
#include <utility>
#include <vector>

namespace troupe {

/// How text is cleaned, and the five special tokens; names and defaults as in Hugging Face's
/// `BertTokenizerFast`.
struct WordPieceOptions {
  bool do_lower_case = true;
  std::optional<bool> strip_accents = std::nullopt;  ///< nothing: as do_lower_case
  bool tokenize_chinese_chars = true;
  std::string unk_token = "[UNK]";
  std::string sep_token = "[SEP]";
  std::string pad_token = "[PAD]";
  std::string cls_token = "[CLS]";
  std::string mask_token = "[MASK]";
};

/// BERT's tokenizer: Unicode normalisation, word splitting, greedy WordPiece (Devlin et al., arXiv
/// 1810.04805), with the numbers and names of Hugging Face's `BertTokenizerFast`. Special tokens
/// spelled out in a text are taken as such.
///
/// Threads: const members may be called from any number of threads.
class WordPiece {
 public:
  using Truncation = troupe::Truncation;

  struct Encoding {
    std::vector<std::int64_t> ids;
    std::vector<std::int64_t> type_ids;
    std::vector<std::int64_t> attention_mask;
    std::vector<std::string> tokens;
    std::vector<std::pair<std::int64_t, std::int64_t>>
        offsets;  ///< code points of its own text, begin and end
  };

  /// Reads vocab.txt (or the vocabulary in tokenizer.json) and, when there, tokenizer_config.json
  /// and special_tokens_map.json. Throws Failure{FileNotFound, FileCorrupt} naming what is missing.
  [[nodiscard]] static WordPiece from_pretrained(const std::filesystem::path& directory);
  /// The vocabulary's order gives the ids. Throws Failure{InvalidArgument} when a special token is
  /// not in it.
  explicit WordPiece(std::vector<std::string> vocabulary, WordPieceOptions options = {});
  ~WordPiece();
  WordPiece(WordPiece&&) noexcept;
  WordPiece& operator=(WordPiece&&) noexcept;

  /// Adds [CLS] and [SEP]. `max_length` 0: no limit. Throws Failure{InvalidArgument} when the side
  /// that `truncation` names is too short to be cut as far as needed, or `max_length` cannot hold
  /// the special tokens.
  [[nodiscard]] Encoding encode(std::string_view text, std::size_t max_length = 0,
                                Truncation truncation = Truncation::LongestFirst) const;
  /// The same for a pair; an empty second text counts as none, as in transformers.
  [[nodiscard]] Encoding encode(std::string_view first, std::string_view second,
                                std::size_t max_length = 0,
                                Truncation truncation = Truncation::LongestFirst) const;
  /// Pads on the right; an encoding that is longer stays as it is.
  void pad(Encoding& encoding, std::size_t length) const;
  /// Pads all to the longest's length, rounded up to a multiple of `multiple_of`.
  void pad(std::span<Encoding> encodings, std::size_t multiple_of = 1) const;

  /// Text of `ids`: pieces joined, spaces before punctuation removed. Ids out of range are left
  /// out.
  [[nodiscard]] std::string decode(const std::vector<std::int64_t>& ids,
                                   bool skip_special_tokens = true) const;
  /// Throws Failure{InvalidArgument} for an id out of range.
  [[nodiscard]] const std::string& token(std::int64_t id) const;
  [[nodiscard]] std::int64_t pad_id() const noexcept;
  [[nodiscard]] std::size_t vocab_size() const noexcept;
  [[nodiscard]] const WordPieceOptions& options() const noexcept;
  /// Writes vocab.txt, tokenizer_config.json and special_tokens_map.json, which transformers loads.
  void save(const std::filesystem::path& directory) const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace troupe
