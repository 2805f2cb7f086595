#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "vocabulary.hpp"

namespace troupe::detail {

/// WordPiece's greedy longest match from the left (Devlin et al., arXiv 1810.04805), of one word.
///
/// Threads: const members, any number at once.
class WordPieceModel {
 public:
  struct Part {
    std::int32_t id = 0;
    std::uint32_t chars = 0;  ///< of the word that it covers
  };

  /// @param vocabulary must outlive the model.
  /// @param max_chars longer words are unknown.
  WordPieceModel(const Vocabulary& vocabulary, std::int32_t unk, std::string prefix = "##",
                 std::size_t max_chars = 100);

  /// Appends the parts of `word`, valid UTF-8; one unknown token for all of it when some part
  /// matches nothing.
  void tokenize(std::string_view word, std::vector<Part>& out) const;

 private:
  const Vocabulary* vocabulary_;
  Vocabulary continuations_;                    // "ing" of "##ing"
  std::vector<std::int32_t> continuation_ids_;  // by its place there
  std::int32_t unk_;
  std::string prefix_;
  std::size_t max_chars_;
};

}  // namespace troupe::detail
