#include "normalizers.hpp"

#include <unicode/unorm2.h>
#include <unicode/ustring.h>

#include <optional>
#include <troupe/errors.hpp>
#include <vector>

#include "../text/bert_normalizer.hpp"
#include "regex.hpp"
#include "unicode_text.hpp"

namespace troupe::detail {
namespace {

class UnicodeForm final : public Normalizer {
 public:
  explicit UnicodeForm(const std::string& form) {
    UErrorCode error = U_ZERO_ERROR;
    form_ = form == "NFC"    ? unorm2_getNFCInstance(&error)
            : form == "NFD"  ? unorm2_getNFDInstance(&error)
            : form == "NFKC" ? unorm2_getNFKCInstance(&error)
                             : unorm2_getNFKDInstance(&error);
    if (U_FAILURE(error)) throw Failure{Errc::Internal, "ICU has no data for " + form};
  }
  void apply(std::string& text) const override {
    if (is_ascii(text)) return;
    std::vector<UChar> from(text.size() + 1);
    UErrorCode error = U_ZERO_ERROR;
    std::int32_t length = 0;
    u_strFromUTF8(from.data(), static_cast<std::int32_t>(from.size()), &length, text.data(),
                  static_cast<std::int32_t>(text.size()), &error);
    if (unorm2_isNormalized(form_, from.data(), length, &error) && U_SUCCESS(error)) return;
    std::vector<UChar> to(from.size() + 16);
    auto written = unorm2_normalize(form_, from.data(), length, to.data(),
                                    static_cast<std::int32_t>(to.size()), &error);
    if (error == U_BUFFER_OVERFLOW_ERROR) {
      error = U_ZERO_ERROR;
      to.resize(static_cast<std::size_t>(written) + 1);
      written = unorm2_normalize(form_, from.data(), length, to.data(),
                                 static_cast<std::int32_t>(to.size()), &error);
    }
    if (U_FAILURE(error))
      throw Failure{Errc::Internal,
                    std::string("ICU cannot normalise a text: ") + u_errorName(error)};
    text.resize(static_cast<std::size_t>(written) * 3);
    u_strToUTF8(text.data(), static_cast<std::int32_t>(text.size()), &length, to.data(), written,
                &error);
    text.resize(static_cast<std::size_t>(length));
  }
  [[nodiscard]] bool keeps_ascii() const override { return true; }

 private:
  const UNormalizer2* form_ = nullptr;
};

/// One code point at a time.
template <class F>
void rewrite(std::string& text, F&& each) {
  std::string out;
  out.reserve(text.size());
  for (std::size_t at = 0; at < text.size();) each(out, next_char(text, at));
  text = std::move(out);
}

class Lowercase final : public Normalizer {
 public:
  void apply(std::string& text) const override {
    rewrite(text, [](std::string& out, UChar32 c) {
      append_utf8(out, static_cast<char32_t>(c == 0x130 ? 'i' : u_tolower(c)));
      if (c == 0x130)
        append_utf8(out, 0x307);  // the one letter whose lower case is two code points
    });
  }
};

class StripAccents final : public Normalizer {
 public:
  void apply(std::string& text) const override {
    if (is_ascii(text)) return;
    rewrite(text, [](std::string& out, UChar32 c) {
      if ((U_GET_GC_MASK(c) & U_GC_M_MASK) == 0) append_utf8(out, static_cast<char32_t>(c));
    });
  }
  [[nodiscard]] bool keeps_ascii() const override { return true; }
};

class Strip final : public Normalizer {
 public:
  Strip(bool left, bool right) : left_(left), right_(right) {}
  void apply(std::string& text) const override {
    std::size_t begin = 0, end = text.size();
    for (auto at = begin; left_ && at < text.size(); begin = at) {
      if (!is_space(next_char(text, at))) break;
    }
    for (auto at = end; right_ && at > begin; end = at) {
      if (!is_space(previous_char(text, at))) break;
    }
    text = text.substr(begin, end - begin);
  }

 private:
  bool left_, right_;
};

class Prepend final : public Normalizer {
 public:
  explicit Prepend(std::string what) : what_(std::move(what)) {}
  void apply(std::string& text) const override {
    if (!text.empty()) text.insert(0, what_);
  }

 private:
  std::string what_;
};

class Replace final : public Normalizer {
 public:
  Replace(TextPattern pattern, std::string content, const std::string& where)
      : pattern_(std::move(pattern.text)), content_(std::move(content)) {
    if (pattern.is_regex) regex_.emplace(pattern_, where);
  }
  void apply(std::string& text) const override {
    std::string out;
    std::size_t from = 0;
    const auto use = [&](std::size_t begin, std::size_t end) {
      out.append(text, from, begin - from).append(content_);
      from = end;
    };
    if (regex_) {
      regex_->for_each_match(text, use);
    } else if (!pattern_.empty()) {
      for (auto at = text.find(pattern_); at != std::string::npos;
           at = text.find(pattern_, at + pattern_.size()))
        use(at, at + pattern_.size());
    }
    if (from == 0 && out.empty()) return;
    out.append(text, from);
    text = std::move(out);
  }

 private:
  std::string pattern_, content_;
  std::optional<Regex> regex_;
};

class Bert final : public Normalizer {
 public:
  explicit Bert(const NormalizerOptions& options) : options_(options) {}
  void apply(std::string& text) const override {
    const auto chars = normalize(text, options_);
    text.clear();
    for (const auto& c : chars) append_utf8(text, c.code);
  }
  [[nodiscard]] const NormalizerOptions* bert() const override { return &options_; }

 private:
  NormalizerOptions options_;
};

class Bytes final : public Normalizer {
 public:
  void apply(std::string& text) const override {
    std::string out;
    for (const char c : text) out += byte_alphabet().spelled[static_cast<unsigned char>(c)];
    text = std::move(out);
  }
};

class Sequence final : public Normalizer {
 public:
  explicit Sequence(std::vector<std::unique_ptr<Normalizer>> steps) : steps_(std::move(steps)) {
    for (const auto& step : steps_) keeps_ascii_ = keeps_ascii_ && step->keeps_ascii();
  }
  void apply(std::string& text) const override {
    for (const auto& step : steps_) step->apply(text);
  }
  [[nodiscard]] bool keeps_ascii() const override { return keeps_ascii_; }

 private:
  std::vector<std::unique_ptr<Normalizer>> steps_;
  bool keeps_ascii_ = true;
};

std::unique_ptr<Normalizer> read_bert(JsonSection& section) {
  if (!section.boolean("clean_text", true))
    section.unsupported("clean_text", "false is not supported");
  NormalizerOptions options;
  options.tokenize_chinese_chars = section.boolean("handle_chinese_chars", true);
  options.lower_case = section.boolean("lowercase", true);
  options.strip_accents = section.boolean("strip_accents", options.lower_case);
  return std::make_unique<Bert>(options);
}

}  // namespace

TextPattern read_pattern(JsonSection& section, const char* key) {
  auto inner = section.section(key);
  TextPattern out;
  out.is_regex = inner.has("Regex");
  out.text = inner.string(out.is_regex ? "Regex" : "String");
  inner.finish();
  return out;
}

std::unique_ptr<Normalizer> read_normalizer(JsonSection section, int depth) {
  std::unique_ptr<Normalizer> out;
  const auto type = section.string("type");
  if (type == "NFC" || type == "NFD" || type == "NFKC" || type == "NFKD") {
    out = std::make_unique<UnicodeForm>(type);
  } else if (type == "Lowercase") {
    out = std::make_unique<Lowercase>();
  } else if (type == "StripAccents") {
    out = std::make_unique<StripAccents>();
  } else if (type == "Strip") {
    const bool left = section.boolean("strip_left", true);
    out = std::make_unique<Strip>(left, section.boolean("strip_right", true));
  } else if (type == "Prepend") {
    out = std::make_unique<Prepend>(section.string("prepend"));
  } else if (type == "Replace") {
    auto pattern = read_pattern(section, "pattern");
    out = std::make_unique<Replace>(std::move(pattern), section.string("content"),
                                    section.where("pattern"));
  } else if (type == "BertNormalizer") {
    out = read_bert(section);
  } else if (type == "ByteLevel") {
    out = std::make_unique<Bytes>();
  } else if (type == "Sequence") {
    if (depth > 4) section.unsupported("normalizers", "is a sequence in a sequence, over 4 deep");
    std::vector<std::unique_ptr<Normalizer>> steps;
    for (auto& step : section.sections("normalizers"))
      steps.push_back(read_normalizer(step, depth + 1));
    if (steps.size() == 1) {
      section.finish();
      return std::move(steps.front());
    }
    out = std::make_unique<Sequence>(std::move(steps));
  } else {
    section.unsupported("type", "'" + type +
                                    "' is not supported; there are: NFC NFD NFKC NFKD Lowercase "
                                    "StripAccents Strip Prepend Replace BertNormalizer "
                                    "ByteLevel Sequence");
  }
  section.finish();
  return out;
}

}  // namespace troupe::detail
