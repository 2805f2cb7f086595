#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "json_section.hpp"

namespace troupe::detail {

/// A step from tokens back to text; the `decoder` of a tokenizer.json.
///
/// Threads: const, any number at once.
class Decoder {
 public:
  virtual ~Decoder() = default;
  /// Rewrites the tokens; what remains is joined.
  virtual void apply(std::vector<std::string>& tokens) const = 0;
};

[[nodiscard]] std::unique_ptr<Decoder> read_decoder(JsonSection section, int depth = 0);

/// <0x41> and the like: the byte; -1: another token.
[[nodiscard]] int byte_of_token(std::string_view token);
/// Appends `bytes` when they are UTF-8, else one U+FFFD for each: the rule of ByteFallback.
void append_fallback_bytes(std::string& out, std::string_view bytes);

}  // namespace troupe::detail
