#include "decoders.hpp"

#include <algorithm>
#include <optional>

#include "../text/clean_up.hpp"
#include "normalizers.hpp"
#include "regex.hpp"
#include "unicode_text.hpp"

namespace troupe::detail {
namespace {

constexpr std::string_view kReplacement = "\xEF\xBF\xBD";

std::string joined(const std::vector<std::string>& tokens) {
  std::string out;
  for (const auto& token : tokens) out += token;
  return out;
}

class BytesDecoder final : public Decoder {
 public:
  void apply(std::vector<std::string>& tokens) const override {
    const auto& alphabet = byte_alphabet();
    std::string bytes, one;
    for (const auto& token : tokens) {
      one.clear();
      bool spelled = true;
      for (std::size_t at = 0; spelled && at < token.size();) {
        const auto c = static_cast<std::size_t>(next_char(token, at));
        spelled = c < alphabet.byte_of.size() && alphabet.byte_of[c] >= 0;
        if (spelled) one += static_cast<char>(alphabet.byte_of[c]);
      }
      bytes += spelled ? one : token;
    }
    std::string storage;
    tokens = {std::string(valid_utf8(bytes, storage))};
  }
};

class WordPieceDecoder final : public Decoder {
 public:
  WordPieceDecoder(std::string prefix, bool cleanup)
      : prefix_(std::move(prefix)), cleanup_(cleanup) {}
  void apply(std::vector<std::string>& tokens) const override {
    for (std::size_t i = 0; i < tokens.size(); ++i) {
      auto& token = tokens[i];
      if (i > 0) token = token.starts_with(prefix_) ? token.substr(prefix_.size()) : " " + token;
      if (cleanup_) clean_up_spaces(token, true);
    }
  }

 private:
  std::string prefix_;
  bool cleanup_;
};

class MetaspaceDecoder final : public Decoder {
 public:
  MetaspaceDecoder(std::string replacement, bool prepended)
      : replacement_(std::move(replacement)), prepended_(prepended) {}
  void apply(std::vector<std::string>& tokens) const override {
    for (std::size_t i = 0; i < tokens.size(); ++i)
      replace_all(tokens[i], replacement_, i == 0 && prepended_ ? "" : " ");
  }

 private:
  std::string replacement_;
  bool prepended_;
};

class ByteFallback final : public Decoder {
 public:
  void apply(std::vector<std::string>& tokens) const override {
    std::vector<std::string> out;
    std::string bytes;
    const auto flush = [&] {
      if (bytes.empty()) return;
      append_fallback_bytes(out.emplace_back(), bytes);
      bytes.clear();
    };
    for (auto& token : tokens) {
      if (const int byte = byte_of_token(token); byte >= 0) {
        bytes += static_cast<char>(byte);
      } else {
        flush();
        out.push_back(std::move(token));
      }
    }
    flush();
    tokens = std::move(out);
  }
};

class Fuse final : public Decoder {
 public:
  void apply(std::vector<std::string>& tokens) const override { tokens = {joined(tokens)}; }
};

/// Takes up to `start` and `stop` copies of a character off the ends of every token.
class StripDecoder final : public Decoder {
 public:
  StripDecoder(std::string content, std::size_t start, std::size_t stop)
      : content_(std::move(content)), start_(start), stop_(stop) {}
  void apply(std::vector<std::string>& tokens) const override {
    for (auto& token : tokens) {
      std::string_view left = token;
      for (std::size_t i = 0; i < start_ && left.starts_with(content_); ++i)
        left.remove_prefix(content_.size());
      for (std::size_t i = 0; i < stop_ && left.ends_with(content_); ++i)
        left.remove_suffix(content_.size());
      token = std::string(left);
    }
  }

 private:
  std::string content_;
  std::size_t start_, stop_;
};

class ReplaceDecoder final : public Decoder {
 public:
  ReplaceDecoder(const TextPattern& pattern, std::string content, const std::string& where)
      : text_(pattern.text), content_(std::move(content)) {
    if (pattern.is_regex) regex_.emplace(pattern.text, where);
  }
  void apply(std::vector<std::string>& tokens) const override {
    for (auto& token : tokens) {
      if (!regex_) {
        replace_all(token, text_, content_);
        continue;
      }
      std::string out;
      std::size_t from = 0;
      regex_->for_each_match(token, [&](std::size_t begin, std::size_t end) {
        out.append(token, from, begin - from).append(content_);
        from = end;
      });
      token = out.append(token, from);
    }
  }

 private:
  std::string text_, content_;
  std::optional<Regex> regex_;
};

class BpeDecoder final : public Decoder {
 public:
  explicit BpeDecoder(std::string suffix) : suffix_(std::move(suffix)) {}
  void apply(std::vector<std::string>& tokens) const override {
    for (std::size_t i = 0; i < tokens.size(); ++i)
      replace_all(tokens[i], suffix_, i + 1 == tokens.size() ? "" : " ");
  }

 private:
  std::string suffix_;
};

class DecoderSequence final : public Decoder {
 public:
  explicit DecoderSequence(std::vector<std::unique_ptr<Decoder>> steps)
      : steps_(std::move(steps)) {}
  void apply(std::vector<std::string>& tokens) const override {
    for (const auto& step : steps_) step->apply(tokens);
  }

 private:
  std::vector<std::unique_ptr<Decoder>> steps_;
};

std::unique_ptr<Decoder> read_strip(JsonSection& section) {
  const auto content = section.string("content");
  const auto start = section.integer("start", 0), stop = section.integer("stop", 0);
  if (content.empty()) section.corrupt("content", "is empty");
  if (start < 0 || stop < 0) section.corrupt("start", "and stop should not be negative");
  return std::make_unique<StripDecoder>(content, static_cast<std::size_t>(start),
                                        static_cast<std::size_t>(stop));
}

std::unique_ptr<Decoder> read_metaspace(JsonSection& section) {
  const auto replacement = section.string("replacement");
  const auto add_prefix = section.boolean("add_prefix_space", true);
  const auto scheme =
      section.string_or_none("prepend_scheme").value_or(add_prefix ? "always" : "never");
  for (const auto* key : {"str_rep", "split"}) section.ignore(key);
  if (replacement.empty()) section.corrupt("replacement", "is empty");
  return std::make_unique<MetaspaceDecoder>(replacement, scheme != "never");
}

}  // namespace

std::unique_ptr<Decoder> read_decoder(JsonSection section, int depth) {
  std::unique_ptr<Decoder> out;
  const auto type = section.string("type");
  if (type == "ByteLevel") {
    out = std::make_unique<BytesDecoder>();
    for (const auto* key : {"add_prefix_space", "trim_offsets", "use_regex"}) section.ignore(key);
  } else if (type == "WordPiece") {
    auto prefix = section.string_or_none("prefix").value_or("##");
    out = std::make_unique<WordPieceDecoder>(std::move(prefix), section.boolean("cleanup", true));
  } else if (type == "Metaspace") {
    out = read_metaspace(section);
  } else if (type == "ByteFallback") {
    out = std::make_unique<ByteFallback>();
  } else if (type == "Fuse") {
    out = std::make_unique<Fuse>();
  } else if (type == "Strip") {
    out = read_strip(section);
  } else if (type == "Replace") {
    auto pattern = read_pattern(section, "pattern");
    out = std::make_unique<ReplaceDecoder>(pattern, section.string("content"),
                                           section.where("pattern"));
  } else if (type == "BPEDecoder") {
    out = std::make_unique<BpeDecoder>(section.string_or_none("suffix").value_or("</w>"));
  } else if (type == "Sequence") {
    if (depth > 4) section.unsupported("decoders", "is a sequence in a sequence, over 4 deep");
    std::vector<std::unique_ptr<Decoder>> steps;
    for (auto& step : section.sections("decoders")) steps.push_back(read_decoder(step, depth + 1));
    out = std::make_unique<DecoderSequence>(std::move(steps));
  } else {
    section.unsupported("type", "'" + type +
                                    "' is not supported; there are: ByteLevel WordPiece Metaspace "
                                    "ByteFallback Fuse Strip Replace BPEDecoder Sequence");
  }
  section.finish();
  return out;
}

int byte_of_token(std::string_view token) {
  if (token.size() != 6 || !token.starts_with("<0x") || token[5] != '>') return -1;
  int value = 0;
  for (const char c : token.substr(3, 2)) {
    const int digit = c >= '0' && c <= '9'   ? c - '0'
                      : c >= 'A' && c <= 'F' ? c - 'A' + 10
                      : c >= 'a' && c <= 'f' ? c - 'a' + 10
                                             : -1;
    if (digit < 0) return -1;
    value = value * 16 + digit;
  }
  return value;
}

void append_fallback_bytes(std::string& out, std::string_view bytes) {
  std::string storage;
  if (valid_utf8(bytes, storage).data() == bytes.data()) {
    out += bytes;
  } else {
    for (std::size_t i = 0; i < bytes.size(); ++i) out += kReplacement;
  }
}

}  // namespace troupe::detail
