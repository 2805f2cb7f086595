#include "snapshot_copy.hpp"

#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <emmintrin.h>
#endif

namespace troupe::detail {

namespace {

constexpr std::size_t kLine = 64;
/// What is smaller stays in the caches, where the next copy may find it.
constexpr std::size_t kPastCache = 32 << 10;

/// Whether a number whose exponent bits are all set is among `bytes`: infinity, or no number.
template <class Word>
bool any_full(const std::byte* from, std::size_t bytes, Word exponent) {
  bool found = false;
  for (std::size_t at = 0; at + sizeof(Word) <= bytes; at += sizeof(Word)) {
    Word word = 0;
    std::memcpy(&word, from + at, sizeof word);
    found |= (word & exponent) == exponent;
  }
  return found;
}

bool any_full(const std::byte* from, std::size_t bytes, SafetensorsDtype dtype) {
  switch (dtype) {
    case SafetensorsDtype::F32:
    case SafetensorsDtype::C64: return any_full<std::uint32_t>(from, bytes, 0x7F800000U);
    case SafetensorsDtype::F64: return any_full<std::uint64_t>(from, bytes, 0x7FF0000000000000ULL);
    case SafetensorsDtype::F16: return any_full<std::uint16_t>(from, bytes, 0x7C00U);
    case SafetensorsDtype::BF16: return any_full<std::uint16_t>(from, bytes, 0x7F80U);
    default: return false;
  }
}

#if defined(__x86_64__)
enum class Lanes { None, Of16, Of32, Of64 };

template <Lanes lanes>
[[gnu::always_inline]] inline __m128i full(__m128i words, __m128i exponent) {
  const auto bits = _mm_and_si128(words, exponent);
  if constexpr (lanes == Lanes::Of16) return _mm_cmpeq_epi16(bits, exponent);
  return _mm_cmpeq_epi32(bits, exponent);  // of 64: the lower half, where no bit is asked for, always agrees
}

/// Whole lines of 64 bytes, to an aligned place, around the caches when `stream`. True when a number is not finite.
template <Lanes lanes, bool stream>
bool copy_lines(std::byte* to, const std::byte* from, std::size_t lines, __m128i exponent) {
  __m128i found = _mm_setzero_si128();
  for (std::size_t line = 0; line < lines; ++line, from += kLine, to += kLine) {
    const auto* source = reinterpret_cast<const __m128i*>(from);
    auto* target = reinterpret_cast<__m128i*>(to);
    const __m128i a = _mm_loadu_si128(source), b = _mm_loadu_si128(source + 1), c = _mm_loadu_si128(source + 2), d = _mm_loadu_si128(source + 3);
    if constexpr (lanes != Lanes::None) {
      const auto ab = _mm_or_si128(full<lanes>(a, exponent), full<lanes>(b, exponent));
      const auto cd = _mm_or_si128(full<lanes>(c, exponent), full<lanes>(d, exponent));
      found = _mm_or_si128(found, _mm_or_si128(ab, cd));
    }
    if constexpr (stream) {
      _mm_stream_si128(target, a);
      _mm_stream_si128(target + 1, b);
      _mm_stream_si128(target + 2, c);
      _mm_stream_si128(target + 3, d);
    } else {
      _mm_store_si128(target, a);
      _mm_store_si128(target + 1, b);
      _mm_store_si128(target + 2, c);
      _mm_store_si128(target + 3, d);
    }
  }
  if constexpr (stream) _mm_sfence();
  if constexpr (lanes == Lanes::Of64) found = _mm_and_si128(found, _mm_set_epi32(-1, 0, -1, 0));
  return _mm_movemask_epi8(found) != 0;
}

template <Lanes lanes>
bool copy_lines(std::byte* to, const std::byte* from, std::size_t bytes, __m128i exponent) {
  const auto lines = bytes / kLine;
  return bytes >= kPastCache ? copy_lines<lanes, true>(to, from, lines, exponent) : copy_lines<lanes, false>(to, from, lines, exponent);
}
#endif

}  // namespace

bool copy_and_check(std::byte* to, const std::byte* from, std::size_t bytes, SafetensorsDtype dtype) {
#if defined(__x86_64__)
  const auto copy = [&] {
    switch (dtype) {
      case SafetensorsDtype::F32:
      case SafetensorsDtype::C64: return copy_lines<Lanes::Of32>(to, from, bytes, _mm_set1_epi32(0x7F800000));
      case SafetensorsDtype::F64: return copy_lines<Lanes::Of64>(to, from, bytes, _mm_set_epi32(0x7FF00000, 0, 0x7FF00000, 0));
      case SafetensorsDtype::F16: return copy_lines<Lanes::Of16>(to, from, bytes, _mm_set1_epi16(0x7C00));
      case SafetensorsDtype::BF16: return copy_lines<Lanes::Of16>(to, from, bytes, _mm_set1_epi16(0x7F80));
      default: return copy_lines<Lanes::None>(to, from, bytes, _mm_setzero_si128());
    }
  };
  const bool found = copy();
  const auto done = bytes / kLine * kLine;
#else
  const bool found = false;
  const std::size_t done = 0;
#endif
  std::memcpy(to + done, from + done, bytes - done);
  return !found && !any_full(from + done, bytes - done, dtype);
}

void copy_past_cache(std::byte* to, const std::byte* from, std::size_t bytes) { (void)copy_and_check(to, from, bytes, SafetensorsDtype::U8); }

bool all_finite(const std::byte* from, std::size_t bytes, SafetensorsDtype dtype) { return !any_full(from, bytes, dtype); }

}  // namespace troupe::detail
