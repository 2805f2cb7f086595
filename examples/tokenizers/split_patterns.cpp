// The two patterns that most byte-level tokenizers use, by hand: ten to twenty times as fast as a
// regular expression.
#include "pre_tokenizers.hpp"
#include "unicode_text.hpp"

namespace troupe::detail {
namespace {

/// A cursor over valid UTF-8.
struct Cursor {
  std::string_view text;
  std::size_t end;

  [[nodiscard]] CharKind kind(std::size_t at, std::size_t& after) const {
    after = at;
    return kind_of(next_char(text, after));
  }
  [[nodiscard]] std::size_t skip(std::size_t at, CharKind kind_wanted) const {
    for (std::size_t after = at; at < end; at = after) {
      if (kind(at, after) != kind_wanted) break;
    }
    return at;
  }
  [[nodiscard]] bool is(std::size_t at, char c) const { return at < end && text[at] == c; }
  [[nodiscard]] bool is_break(std::size_t at) const { return is(at, '\n') || is(at, '\r'); }
};

/// Bytes of 's 't 're 've 'm 'll 'd at `at`; 0: none. Case-blind, U+017F counts as s.
std::size_t contraction(const Cursor& in, std::size_t at, bool any_case) {
  if (!in.is(at, '\'') || at + 1 >= in.end) return 0;
  const auto letter = [&](std::size_t i) {
    if (i >= in.end) return '\0';
    const char c = in.text[i];
    return any_case && c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c;
  };
  const char a = letter(at + 1), b = letter(at + 2);
  if (a == 's' || a == 't' || a == 'm' || a == 'd') return 2;
  if ((a == 'r' && b == 'e') || (a == 'v' && b == 'e') || (a == 'l' && b == 'l')) return 3;
  if (any_case && at + 2 < in.end && in.text.substr(at + 1, 2) == "\xC5\xBF") return 3;
  return 0;
}

/// A run of white space [at, after): all but its last character when something follows, which that
/// one goes with.
std::size_t white_space(const Cursor& in, std::size_t at, std::size_t after) {
  if (after == in.end) return after;
  auto last = after;
  (void)previous_char(in.text, last);
  return last == at ? after : last;
}

std::size_t next_gpt2(const Cursor& in, std::size_t at) {
  if (const auto size = contraction(in, at, false)) return at + size;
  const auto begin = at + (in.is(at, ' ') ? 1 : 0);
  if (begin < in.end) {
    std::size_t after = 0;
    const auto kind = in.kind(begin, after);
    if (kind != CharKind::Space) return in.skip(after, kind);
  }
  return white_space(in, at, in.skip(at, CharKind::Space));
}

std::size_t next_gpt4(const Cursor& in, std::size_t at, std::size_t max_digits) {
  if (const auto size = contraction(in, at, true)) return at + size;
  std::size_t after = 0;
  const auto kind = in.kind(at, after);
  if (kind == CharKind::Letter) return in.skip(after, CharKind::Letter);
  if (kind == CharKind::Number) {
    for (std::size_t digits = 1, behind = after; digits < max_digits && after < in.end;
         ++digits, after = behind) {
      if (in.kind(after, behind) != CharKind::Number) break;
    }
    return after;
  }
  std::size_t second = 0;
  if (!in.is_break(at) && after < in.end && in.kind(after, second) == CharKind::Letter)
    return in.skip(second, CharKind::Letter);
  const auto begin = in.is(at, ' ') ? after : at;
  if (begin < in.end && in.kind(begin, second) == CharKind::Other) {
    auto end = in.skip(second, CharKind::Other);
    while (in.is_break(end)) ++end;
    return end;
  }
  const auto space_end = in.skip(at, CharKind::Space);
  for (auto end = space_end; end > at; --end) {
    if (in.is_break(end - 1)) return end;
  }
  return white_space(in, at, space_end);
}

template <class F>
void cut(Range range, std::vector<Range>& out, F&& next) {
  for (std::size_t at = range.begin; at < range.end;) {
    const auto end = next(at);
    out.push_back({static_cast<std::uint32_t>(at), static_cast<std::uint32_t>(end)});
    at = end;
  }
}

}  // namespace

void split_gpt2(std::string_view text, Range range, std::vector<Range>& out) {
  const Cursor in{text, range.end};
  cut(range, out, [&](std::size_t at) { return next_gpt2(in, at); });
}

void split_gpt4(std::string_view text, Range range, std::size_t max_digits,
                std::vector<Range>& out) {
  const Cursor in{text, range.end};
  cut(range, out, [&](std::size_t at) { return next_gpt4(in, at, max_digits); });
}

}  // namespace troupe::detail
