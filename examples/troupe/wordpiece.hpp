#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace troupe {

/// BERT's tokenizer: Unicode normalisation, word splitting, greedy WordPiece (Devlin et al., arXiv 1810.04805), with
/// the numbers and names of Hugging Face's `BertTokenizerFast`.
///
/// Threads: const members may be called from any number of threads.
class WordPiece {
 public:
  enum class Truncation : std::uint8_t { None, LongestFirst, OnlyFirst, OnlySecond };

  struct Encoding {
    std::vector<std::int64_t> ids;
    std::vector<std::int64_t> type_ids;
    std::vector<std::int64_t> attention_mask;
    std::vector<std::string> tokens;
    std::vector<std::pair<std::int64_t, std::int64_t>> offsets;  ///< code points, begin and end
  };

  /// Reads vocab.txt and, when there, tokenizer_config.json / special_tokens_map.json (do_lower_case …).
  /// Throws Failure{FileNotFound, FileCorrupt} naming what is missing.
  [[nodiscard]] static WordPiece from_pretrained(const std::filesystem::path& directory);
  WordPiece(std::vector<std::string> vocabulary, bool lower_case);
  ~WordPiece();
  WordPiece(WordPiece&&) noexcept;

  /// Adds [CLS] and [SEP]. `max_length` 0: no limit.
  [[nodiscard]] Encoding encode(std::string_view text, std::size_t max_length = 0, Truncation truncation = Truncation::LongestFirst) const;
  [[nodiscard]] Encoding encode(std::string_view first, std::string_view second, std::size_t max_length = 0,
                                Truncation truncation = Truncation::LongestFirst) const;
  [[nodiscard]] std::string decode(const std::vector<std::int64_t>& ids, bool skip_special_tokens = true) const;
  [[nodiscard]] std::int64_t pad_id() const noexcept;
  [[nodiscard]] std::size_t vocab_size() const noexcept;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace troupe
