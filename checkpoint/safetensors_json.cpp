#include "safetensors_json.hpp"

#include <charconv>
#include <cmath>
#include <cstdlib>
#include <troupe/errors.hpp>

namespace troupe::detail {
namespace {

constexpr int kMaxDepth = 127;  // serde_json's limit

bool is_digit(char c) noexcept { return c >= '0' && c <= '9'; }

void append_utf8(std::string& out, std::uint32_t c) {
  if (c < 0x80) {
    out += static_cast<char>(c);
  } else if (c < 0x800) {
    out += static_cast<char>(0xC0 | (c >> 6));
    out += static_cast<char>(0x80 | (c & 0x3F));
  } else if (c < 0x10000) {
    out += static_cast<char>(0xE0 | (c >> 12));
    out += static_cast<char>(0x80 | ((c >> 6) & 0x3F));
    out += static_cast<char>(0x80 | (c & 0x3F));
  } else {
    out += static_cast<char>(0xF0 | (c >> 18));
    out += static_cast<char>(0x80 | ((c >> 12) & 0x3F));
    out += static_cast<char>(0x80 | ((c >> 6) & 0x3F));
    out += static_cast<char>(0x80 | (c & 0x3F));
  }
}

}  // namespace

void HeaderJson::fail(const std::string& text) const {
  throw Failure{Errc::FileCorrupt, std::string(what_) + ": the header's JSON " + text + " (byte " +
                                       std::to_string(at_) + " of the header)"};
}

char HeaderJson::peek() {
  while (at_ < text_.size() &&
         (text_[at_] == ' ' || text_[at_] == '\n' || text_[at_] == '\r' || text_[at_] == '\t'))
    ++at_;
  return at_ < text_.size() ? text_[at_] : '\0';
}

bool HeaderJson::take(char byte) {
  if (peek() != byte || at_ == text_.size()) return false;
  ++at_;
  return true;
}

void HeaderJson::expect(char byte) {
  if (!take(byte))
    fail(std::string("should have '") + byte + "'" + (at_ == text_.size() ? " but ends" : ""));
}

void HeaderJson::enter() {
  if (++depth_ > kMaxDepth) fail("is nested deeper than " + std::to_string(kMaxDepth) + " levels");
}

void HeaderJson::end() {
  (void)peek();
  if (at_ != text_.size()) fail("goes on after its end");
}

std::uint32_t HeaderJson::hex4() {
  if (text_.size() - at_ < 4) fail("ends inside an escape");
  std::uint32_t value = 0;
  const auto* first = text_.data() + at_;
  const auto [last, error] = std::from_chars(first, first + 4, value, 16);
  if (error != std::errc{} || last != first + 4)
    fail("has a \\u that four hex digits do not follow");
  at_ += 4;
  return value;
}

std::uint32_t HeaderJson::escaped_code_point() {
  const auto high = hex4();
  if (high < 0xD800 || high > 0xDFFF) return high;
  if (high > 0xDBFF || text_.substr(at_, 2) != "\\u") fail("has a lone surrogate");
  at_ += 2;
  const auto low = hex4();
  if (low < 0xDC00 || low > 0xDFFF) fail("has a lone surrogate");
  return 0x10000 + ((high - 0xD800) << 10) + (low - 0xDC00);
}

std::string HeaderJson::string() {
  expect('"');
  std::string out;
  for (;;) {
    if (at_ == text_.size()) fail("ends inside a string");
    const char c = text_[at_++];
    if (c == '"') return out;
    if (static_cast<unsigned char>(c) < 0x20) fail("has a control character in a string");
    if (c != '\\') {
      out += c;
      continue;
    }
    switch (at_ < text_.size() ? text_[at_++] : '\0') {
      case '"':
        out += '"';
        break;
      case '\\':
        out += '\\';
        break;
      case '/':
        out += '/';
        break;
      case 'b':
        out += '\b';
        break;
      case 'f':
        out += '\f';
        break;
      case 'n':
        out += '\n';
        break;
      case 'r':
        out += '\r';
        break;
      case 't':
        out += '\t';
        break;
      case 'u':
        append_utf8(out, escaped_code_point());
        break;
      default:
        fail("has an unknown escape");
    }
  }
}

void HeaderJson::digits() {
  if (at_ == text_.size() || !is_digit(text_[at_])) fail("has a malformed number");
  while (at_ < text_.size() && is_digit(text_[at_])) ++at_;
}

std::string_view HeaderJson::number() {
  (void)peek();
  const auto begin = at_;
  if (at_ < text_.size() && text_[at_] == '-') ++at_;
  if (at_ < text_.size() && text_[at_] == '0') {
    ++at_;
    if (at_ < text_.size() && is_digit(text_[at_])) fail("has a number with a leading zero");
  } else {
    digits();
  }
  if (at_ < text_.size() && text_[at_] == '.') {
    ++at_;
    digits();
  }
  if (at_ < text_.size() && (text_[at_] == 'e' || text_[at_] == 'E')) {
    ++at_;
    if (at_ < text_.size() && (text_[at_] == '+' || text_[at_] == '-')) ++at_;
    digits();
  }
  return text_.substr(begin, at_ - begin);
}

std::uint64_t HeaderJson::unsigned_integer() {
  if (const char c = peek(); !is_digit(c) && c != '-') fail("should have a number");
  const auto word = number();
  std::uint64_t value = 0;
  const auto [last, error] = std::from_chars(word.data(), word.data() + word.size(), value);
  if (error != std::errc{} || last != word.data() + word.size()) {
    fail("has the number " + std::string(word.substr(0, 40)) +
         " where a whole number from 0 to 2^64-1 belongs");
  }
  return value;
}

void HeaderJson::literal(std::string_view word) {
  (void)peek();
  if (text_.substr(at_, word.size()) != word) fail("has a word that is no JSON");
  at_ += word.size();
}

void HeaderJson::null() { literal("null"); }

void HeaderJson::skip_value() {
  switch (peek()) {
    case '{':
      object([this](const std::string&) { skip_value(); });
      break;
    case '[':
      array([this] { skip_value(); });
      break;
    case '"':
      (void)string();
      break;
    case 't':
      literal("true");
      break;
    case 'f':
      literal("false");
      break;
    case 'n':
      literal("null");
      break;
    default:
      if (!std::isfinite(std::strtod(std::string(number()).c_str(), nullptr)))
        fail("has a number beyond a double");
  }
}

std::size_t find_invalid_utf8(std::string_view text) noexcept {
  const auto byte = [text](std::size_t i) {
    return i < text.size() ? static_cast<unsigned char>(text[i]) : 0U;
  };
  for (std::size_t i = 0; i < text.size();) {
    const unsigned lead = byte(i);
    if (lead < 0x80) {
      ++i;
      continue;
    }
    const int more = lead >= 0xC2 && lead <= 0xDF   ? 1
                     : lead >= 0xE0 && lead <= 0xEF ? 2
                     : lead >= 0xF0 && lead <= 0xF4 ? 3
                                                    : 0;
    if (more == 0) return i;
    const unsigned low = lead == 0xE0 ? 0xA0 : lead == 0xF0 ? 0x90 : 0x80;  // no overlong forms
    const unsigned high = lead == 0xED   ? 0x9F
                          : lead == 0xF4 ? 0x8F
                                         : 0xBF;  // no surrogates, nothing past U+10FFFF
    if (byte(i + 1) < low || byte(i + 1) > high) return i;
    for (int k = 2; k <= more; ++k) {
      if (byte(i + static_cast<std::size_t>(k)) < 0x80 ||
          byte(i + static_cast<std::size_t>(k)) > 0xBF)
        return i;
    }
    i += static_cast<std::size_t>(more) + 1;
  }
  return std::string_view::npos;
}

}  // namespace troupe::detail
