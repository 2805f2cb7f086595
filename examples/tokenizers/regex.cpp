#include "regex.hpp"

#include <unicode/uregex.h>
#include <unicode/utext.h>

#include <array>
#include <mutex>
#include <troupe/errors.hpp>
#include <vector>

namespace troupe::detail {
namespace {

constexpr std::size_t kMaxPatternBytes = 10'000;
constexpr int kTimeLimit = 1000;  // of one match; ICU's unit is about a millisecond

/// Rewrites Oniguruma's syntax into ICU's.
class Translator {
 public:
  Translator(std::string_view pattern, const std::string& where) : in_(pattern), where_(where) {}

  std::string run() {
    while (at_ < in_.size()) step();
    return std::move(out_);
  }

 private:
  [[noreturn]] void refuse(const std::string& what) const {
    throw Failure{Errc::Unsupported,
                  where_ + ": " + what + " in the pattern '" + std::string(in_) +
                      "' is not supported: Oniguruma and ICU read it differently"};
  }

  void step() {
    const char c = in_[at_];
    if (c == '\\') return escape();
    if (depth_ > 0) {
      set_char(c);
    } else if (c == '[') {
      open_set();
    } else if (c == '(') {
      group();
    } else if (c == '}' && at_ + 1 < in_.size() && in_[at_ + 1] == '+') {
      refuse("'}+'");  // possessive in ICU, a repetition of a repetition in Oniguruma
    } else {
      keep(1);
    }
  }

  void keep(std::size_t count) {
    out_ += in_.substr(at_, count);
    at_ += count;
  }

  void open_set() {
    ++depth_;
    keep(1);
    if (at_ < in_.size() && in_[at_] == '^') keep(1);
    if (at_ < in_.size() && in_[at_] == ']') refuse("']' as the first of a set");
  }

  void set_char(char c) {
    const auto two = in_.substr(at_, 2);
    if (two == "[:" || two == "&&" || two == "--") refuse("'" + std::string(two) + "' in a set");
    if (c == '[') return open_set();
    if (c == ']') --depth_;
    if (c == '{' || c == '}' || c == '$' || c == '&' || c == '"')
      out_ += '\\';  // ICU gives some of them a meaning
    keep(1);
  }

  void group() {
    if (!in_.substr(at_).starts_with("(?")) return keep(1);
    constexpr std::array<std::string_view, 6> known{"(?:", "(?=", "(?!", "(?>", "(?<=", "(?<!"};
    for (const auto prefix : known) {
      if (in_.substr(at_).starts_with(prefix)) return keep(prefix.size());
    }
    if (in_.substr(at_).starts_with("(?i:")) return keep(4);
    refuse("the group '" + std::string(in_.substr(at_, 4)) + "'");
  }

  void escape() {
    if (at_ + 1 >= in_.size()) refuse("'\\' at the end");
    const char c = in_[at_ + 1];
    constexpr std::string_view word = R"(\p{Alphabetic}\p{M}\p{Nd}\p{Pc})";
    const auto replace = [&](std::string_view text) {
      out_ += text;
      at_ += 2;
    };
    switch (c) {
      case 's':
        return replace(R"(\p{White_Space})");
      case 'S':
        return replace(R"(\P{White_Space})");
      case 'd':
        return replace(R"(\p{Nd})");
      case 'D':
        return replace(R"(\P{Nd})");
      case 'w':
        return replace("[" + std::string(word) + "]");
      case 'W':
        return replace("[^" + std::string(word) + "]");
      case 'v':
        return replace(R"(\x0B)");
      case 'n':
      case 'r':
      case 't':
      case 'f':
      case 'a':
      case 'e':
        return keep(2);
      case 'p':
      case 'P':
        return property();
      case 'x':
      case 'u':
        return keep(2);
      default:
        break;
    }
    const auto byte = static_cast<unsigned char>(c);
    if (byte >= 0x80 || (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'))
      refuse("'\\" + std::string(1, c) + "'");
    keep(2);
  }

  void property() {
    const auto end = in_.find('}', at_);
    if (in_.size() <= at_ + 3 || in_[at_ + 2] != '{' || in_[at_ + 3] == '^' ||
        end == std::string_view::npos)
      refuse("this use of '\\p'");
    keep(end + 1 - at_);
  }

  std::string_view in_;
  const std::string& where_;
  std::string out_;
  std::size_t at_ = 0;
  int depth_ = 0;
};

}  // namespace

struct Regex::Impl {
  URegularExpression* pattern = nullptr;
  std::string where;
  std::mutex mutex;
  std::vector<URegularExpression*> idle;  // clones, one for each thread that is matching

  ~Impl() {
    for (auto* clone : idle) uregex_close(clone);
    if (pattern) uregex_close(pattern);
  }

  URegularExpression* take() {
    const std::lock_guard lock{mutex};
    if (idle.empty()) {
      UErrorCode error = U_ZERO_ERROR;
      auto* const clone = uregex_clone(pattern, &error);
      if (U_FAILURE(error)) throw Failure{Errc::Internal, where + ": ICU cannot copy a pattern"};
      uregex_setTimeLimit(clone, kTimeLimit, &error);
      return clone;
    }
    auto* const clone = idle.back();
    idle.pop_back();
    return clone;
  }
  void give(URegularExpression* clone) {
    const std::lock_guard lock{mutex};
    idle.push_back(clone);
  }
};

Regex::Regex(const std::string& pattern, const std::string& where)
    : impl_(std::make_unique<Impl>()) {
  if (pattern.size() > kMaxPatternBytes)
    throw Failure{Errc::Unsupported, where + ": a pattern of over 10,000 bytes"};
  impl_->where = where;
  const auto translated = Translator{pattern, where}.run();
  UErrorCode error = U_ZERO_ERROR;
  UText text = UTEXT_INITIALIZER;
  utext_openUTF8(&text, translated.data(), static_cast<std::int64_t>(translated.size()), &error);
  UParseError place{};
  // Oniguruma's Ruby syntax: ^ and $ at every line, and only \n ends one.
  impl_->pattern = uregex_openUText(&text, UREGEX_MULTILINE | UREGEX_UNIX_LINES, &place, &error);
  utext_close(&text);
  if (U_FAILURE(error))
    throw Failure{Errc::FileCorrupt,
                  where + ": '" + pattern +
                      "' is no regular expression that ICU takes: " + u_errorName(error)};
}

Regex::~Regex() = default;
Regex::Regex(Regex&&) noexcept = default;
Regex& Regex::operator=(Regex&&) noexcept = default;

void Regex::for_each_match(std::string_view text,
                           const std::function<void(std::size_t, std::size_t)>& use) const {
  auto* const pattern = impl_->take();
  UErrorCode error = U_ZERO_ERROR;
  UText utf8 = UTEXT_INITIALIZER;
  utext_openUTF8(&utf8, text.data(), static_cast<std::int64_t>(text.size()), &error);
  uregex_setUText(pattern, &utf8, &error);
  while (U_SUCCESS(error) && uregex_findNext(pattern, &error)) {
    const auto begin = uregex_start64(pattern, 0, &error);
    const auto end = uregex_end64(pattern, 0, &error);
    if (U_SUCCESS(error)) use(static_cast<std::size_t>(begin), static_cast<std::size_t>(end));
  }
  utext_close(&utf8);
  impl_->give(pattern);
  if (U_FAILURE(error)) {
    throw Failure{Errc::DataMalformed,
                  impl_->where + ": the pattern cannot be matched against a text of " +
                      std::to_string(text.size()) + " bytes: " + u_errorName(error)};
  }
}

}  // namespace troupe::detail
