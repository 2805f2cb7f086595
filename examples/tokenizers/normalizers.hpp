#pragma once

#include <memory>
#include <string>

#include "json_section.hpp"

namespace troupe::detail {

struct NormalizerOptions;

/// A step that rewrites text before it is split; the `normalizer` of a tokenizer.json.
///
/// Threads: const, any number at once.
class Normalizer {
 public:
  virtual ~Normalizer() = default;
  /// Rewrites valid UTF-8 in place.
  virtual void apply(std::string& text) const = 0;
  /// True when `apply` leaves ASCII without these as it is; the fast path of most texts.
  [[nodiscard]] virtual bool keeps_ascii() const { return false; }
  /// BERT's cleaning, which words can be cut from directly; nullptr for the others.
  [[nodiscard]] virtual const NormalizerOptions* bert() const { return nullptr; }
};

/// Throws Failure{Unsupported, FileCorrupt} naming the key.
[[nodiscard]] std::unique_ptr<Normalizer> read_normalizer(JsonSection section, int depth = 0);

/// The String or Regex in `key` of a Replace or Split section.
struct TextPattern {
  bool is_regex = false;
  std::string text;
};
[[nodiscard]] TextPattern read_pattern(JsonSection& section, const char* key);

}  // namespace troupe::detail
