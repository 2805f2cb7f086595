#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace troupe::detail {

/// A pull parser for the JSON of a safetensors header, as strict as serde_json: RFC 8259, no
/// byte-order mark, at most 127 levels, lone surrogates and numbers beyond a double refused.
/// nlohmann::json differs in several of these (it skips a byte-order mark, ends at a NUL, hides
/// duplicate keys), and the header comes from strangers.
///
/// Every function throws Failure{FileCorrupt} that begins with `what` and ends with the position.
class HeaderJson {
 public:
  HeaderJson(std::string_view text, std::string_view what) : text_(text), what_(what) {}

  /// Skips white space; the next byte, or 0 at the end.
  [[nodiscard]] char peek();
  /// Takes `byte` when it comes next.
  [[nodiscard]] bool take(char byte);
  void expect(char byte);
  [[nodiscard]] std::string string();
  [[nodiscard]] std::uint64_t unsigned_integer();
  void null();
  /// Checks any value and drops it.
  void skip_value();
  void end();

  void enter();
  void leave() noexcept { --depth_; }
  /// Calls `member(key)` for each member of an object, positioned at its value.
  template <class F>
  void object(F&& member);
  /// Calls `element()` for each element of an array.
  template <class F>
  void array(F&& element);
  [[noreturn]] void fail(const std::string& text) const;

 private:
  void literal(std::string_view word);
  void digits();
  [[nodiscard]] std::string_view number();
  [[nodiscard]] std::uint32_t hex4();
  [[nodiscard]] std::uint32_t escaped_code_point();

  std::string_view text_;
  std::string_view what_;
  std::size_t at_ = 0;
  int depth_ = 0;
};

template <class F>
void HeaderJson::object(F&& member) {
  expect('{');
  enter();
  if (!take('}')) {
    do {
      auto key = string();
      expect(':');
      member(std::move(key));
    } while (take(','));
    expect('}');
  }
  leave();
}

template <class F>
void HeaderJson::array(F&& element) {
  expect('[');
  enter();
  if (!take(']')) {
    do {
      element();
    } while (take(','));
    expect(']');
  }
  leave();
}

/// Offset of the first byte that is not UTF-8 (RFC 3629: no overlong forms, no surrogates), or
/// npos.
[[nodiscard]] std::size_t find_invalid_utf8(std::string_view text) noexcept;

}  // namespace troupe::detail
