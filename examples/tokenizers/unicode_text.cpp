#include "unicode_text.hpp"

#include <bit>
#include <cstring>

#include "../text/bert_normalizer.hpp"

namespace troupe::detail {

CharKind kind_of_wide(UChar32 c) {
  const auto mask = U_GET_GC_MASK(c);
  if (mask & U_GC_L_MASK) return CharKind::Letter;
  if (mask & U_GC_N_MASK) return CharKind::Number;
  return is_space(c) ? CharKind::Space : CharKind::Other;
}

bool is_word_char(UChar32 c) {
  if (c < 0x80)
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_';
  if (c == 0x200C || c == 0x200D) return true;
  constexpr auto kinds = U_GC_M_MASK | U_GC_ND_MASK | U_GC_PC_MASK;
  return (U_GET_GC_MASK(c) & kinds) != 0 || u_hasBinaryProperty(c, UCHAR_ALPHABETIC);
}

bool is_ascii(std::string_view text) noexcept {
  constexpr std::uint64_t high = 0x8080808080808080U;
  std::size_t at = 0;
  for (; at + 8 <= text.size(); at += 8) {
    std::uint64_t word = 0;
    std::memcpy(&word, text.data() + at, 8);
    if (word & high) return false;
  }
  for (; at < text.size(); ++at) {
    if (static_cast<unsigned char>(text[at]) >= 0x80) return false;
  }
  return true;
}

std::string_view valid_utf8(std::string_view text, std::string& storage) {
  if (is_ascii(text)) return text;
  std::size_t at = 0;
  while (at < text.size()) {
    UChar32 c = 0;
    U8_NEXT(text.data(), at, text.size(), c);
    if (c < 0) break;
    if (at == text.size()) return text;
  }
  storage.clear();
  for (at = 0; at < text.size();) {
    UChar32 c = 0;
    U8_NEXT_OR_FFFD(text.data(), at, text.size(), c);
    append_utf8(storage, static_cast<char32_t>(c));
  }
  return storage;
}

const ByteAlphabet& byte_alphabet() {
  static const ByteAlphabet alphabet = [] {
    ByteAlphabet out;
    out.byte_of.fill(-1);
    char32_t next = 0x100;
    for (unsigned byte = 0; byte < 256; ++byte) {
      const bool printable =
          (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE;
      const char32_t code = printable ? static_cast<char32_t>(byte) : next++;
      append_utf8(out.spelled[byte], code);
      out.byte_of[code] = static_cast<std::int16_t>(byte);
    }
    return out;
  }();
  return alphabet;
}

}  // namespace troupe::detail
