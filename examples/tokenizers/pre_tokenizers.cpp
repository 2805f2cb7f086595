#include "pre_tokenizers.hpp"

#include <algorithm>
#include <array>
#include <optional>
#include <troupe/errors.hpp>

#include "../text/bert_normalizer.hpp"
#include "normalizers.hpp"
#include "regex.hpp"
#include "unicode_text.hpp"

namespace troupe::detail {

void Pieces::begin(std::string_view whole, bool starts_input) {
  if (whole.size() > kMaxTextBytes)
    throw Failure{Errc::InvalidArgument, "a text of over 1 GB cannot be encoded at once"};
  text = whole;
  at_start = starts_input;
  ranges.clear();
  if (!whole.empty()) ranges.push_back({0, static_cast<std::uint32_t>(whole.size())});
}

namespace {

enum class Behavior : std::uint8_t {
  Removed,
  Isolated,
  MergedWithPrevious,
  MergedWithNext,
  Contiguous
};

Behavior read_behavior(JsonSection& section, Behavior otherwise) {
  const auto text = section.string_or_none("behavior");
  if (!text) return otherwise;
  constexpr std::array<std::pair<std::string_view, Behavior>, 5> names{
      {{"Removed", Behavior::Removed},
       {"Isolated", Behavior::Isolated},
       {"MergedWithPrevious", Behavior::MergedWithPrevious},
       {"MergedWithNext", Behavior::MergedWithNext},
       {"Contiguous", Behavior::Contiguous}}};
  for (const auto& [name, value] : names) {
    if (*text == name) return value;
  }
  section.corrupt(
      "behavior",
      "is '" + *text +
          "'; there are: Removed Isolated MergedWithPrevious MergedWithNext Contiguous");
}

/// Matches and what lies between them, in order; from them, the pieces.
class Cutter {
 public:
  Cutter(Range range, Behavior behavior, bool invert, std::vector<Range>& out)
      : at_(range.begin),
        end_(range.end),
        first_(out.size()),
        behavior_(behavior),
        invert_(invert),
        out_(out) {}

  void match(std::size_t begin, std::size_t end) {
    if (begin > at_) add(at_, begin, invert_);
    add(begin, end, !invert_);
    at_ = end;
  }
  void finish() {
    if (at_ < end_) add(at_, end_, invert_);
    if (behavior_ == Behavior::MergedWithNext) merge_with_next();
    std::erase_if(out_, [](Range r) { return r.begin == r.end; });
  }

 private:
  void add(std::size_t begin, std::size_t end, bool is_match) {
    const Range piece{static_cast<std::uint32_t>(begin), static_cast<std::uint32_t>(end)};
    const bool first = out_.size() == first_;
    const bool join =
        !first && ((behavior_ == Behavior::Contiguous && is_match == previous_match_) ||
                   (behavior_ == Behavior::MergedWithPrevious && is_match && !previous_match_));
    if (join) {
      out_.back().end = piece.end;
    } else if (!(behavior_ == Behavior::Removed && is_match)) {
      out_.push_back(piece);
      if (behavior_ == Behavior::MergedWithNext) matches_.push_back(is_match);
    }
    previous_match_ = is_match;
  }
  /// From the right: a match joins the piece after it, unless that is a match too.
  void merge_with_next() {
    std::vector<Range> merged;
    bool previous = false;
    for (std::size_t i = matches_.size(); i-- > 0;) {
      const auto piece = out_[first_ + i];
      if (matches_[i] && !previous && !merged.empty()) {
        merged.back().begin = piece.begin;
      } else {
        merged.push_back(piece);
      }
      previous = matches_[i];
    }
    out_.resize(first_);
    out_.insert(out_.end(), merged.rbegin(), merged.rend());
  }

  std::size_t at_, end_, first_;
  Behavior behavior_;
  bool invert_, previous_match_ = false;
  std::vector<bool> matches_;
  std::vector<Range>& out_;
};

/// Splits where `is_match(code point)` says.
template <class F>
void split_chars(Pieces& pieces, Behavior behavior, F&& is_match) {
  pieces.split([&](Range range, std::vector<Range>& out) {
    Cutter cutter{range, behavior, false, out};
    for (std::size_t at = range.begin; at < range.end;) {
      const auto begin = at;
      if (is_match(next_char(pieces.text, at))) cutter.match(begin, at);
    }
    cutter.finish();
  });
}

class CharSplit final : public PreTokenizer {
 public:
  CharSplit(bool (*is_match)(UChar32), Behavior behavior)
      : is_match_(is_match), behavior_(behavior) {}
  void run(Pieces& pieces) const override { split_chars(pieces, behavior_, is_match_); }

 private:
  bool (*is_match_)(UChar32);
  Behavior behavior_;
};

class DelimiterSplit final : public PreTokenizer {
 public:
  explicit DelimiterSplit(UChar32 delimiter) : delimiter_(delimiter) {}
  void run(Pieces& pieces) const override {
    split_chars(pieces, Behavior::Removed, [this](UChar32 c) { return c == delimiter_; });
  }

 private:
  UChar32 delimiter_;
};

/// \w+|[^\w\s]+, what is neither dropped.
class WordSplit final : public PreTokenizer {
 public:
  void run(Pieces& pieces) const override {
    pieces.split([&](Range range, std::vector<Range>& out) {
      int open = 0;  // 0: none, 1: word, 2: others
      for (std::size_t at = range.begin; at < range.end;) {
        const auto begin = static_cast<std::uint32_t>(at);
        const auto c = next_char(pieces.text, at);
        const int kind = is_word_char(c) ? 1 : is_space(c) ? 0 : 2;
        if (kind != 0 && kind == open) {
          out.back().end = static_cast<std::uint32_t>(at);
        } else if (kind != 0) {
          out.push_back({begin, static_cast<std::uint32_t>(at)});
        }
        open = kind;
      }
    });
  }
};

class PatternSplit final : public PreTokenizer {
 public:
  PatternSplit(const TextPattern& pattern, Behavior behavior, bool invert, const std::string& where)
      : behavior_(behavior), invert_(invert), text_(pattern.text) {
    if (pattern.is_regex) regex_.emplace(pattern.text, where);
  }
  void run(Pieces& pieces) const override {
    pieces.split([&](Range range, std::vector<Range>& out) {
      Cutter cutter{range, behavior_, invert_, out};
      const auto piece = pieces.text.substr(range.begin, range.end - range.begin);
      const auto use = [&](std::size_t begin, std::size_t end) {
        cutter.match(range.begin + begin, range.begin + end);
      };
      if (regex_) {
        regex_->for_each_match(piece, use);
      } else if (!text_.empty()) {
        for (auto at = piece.find(text_); at != std::string_view::npos;
             at = piece.find(text_, at + text_.size()))
          use(at, at + text_.size());
      }
      cutter.finish();
    });
  }

 private:
  Behavior behavior_;
  bool invert_;
  std::string text_;
  std::optional<Regex> regex_;
};

class Gpt4Split final : public PreTokenizer {
 public:
  explicit Gpt4Split(std::size_t max_digits) : max_digits_(max_digits) {}
  void run(Pieces& pieces) const override {
    pieces.split([&](Range range, std::vector<Range>& out) {
      split_gpt4(pieces.text, range, max_digits_, out);
    });
  }

 private:
  std::size_t max_digits_;
};

class Gpt2Split final : public PreTokenizer {
 public:
  void run(Pieces& pieces) const override {
    pieces.split(
        [&](Range range, std::vector<Range>& out) { split_gpt2(pieces.text, range, out); });
  }
};

class PrefixSpace final : public PreTokenizer {
 public:
  void run(Pieces& pieces) const override {
    pieces.rewrite([](std::string_view piece, bool, std::string& out) {
      if (!piece.starts_with(' ')) out += ' ';
      out += piece;
    });
  }
};

class SpellBytes final : public PreTokenizer {
 public:
  void run(Pieces& pieces) const override {
    pieces.rewrite([](std::string_view piece, bool, std::string& out) {
      for (const char c : piece) out += byte_alphabet().spelled[static_cast<unsigned char>(c)];
    });
  }
};

class Metaspace final : public PreTokenizer {
 public:
  enum class Prepend : std::uint8_t { Always, Never, First };
  Metaspace(std::string replacement, Prepend prepend, bool split)
      : replacement_(std::move(replacement)), prepend_(prepend), split_(split) {}

  void run(Pieces& pieces) const override {
    const bool at_start = pieces.at_start;
    pieces.rewrite([&](std::string_view piece, bool first, std::string& out) {
      const bool wanted =
          prepend_ == Prepend::Always || (prepend_ == Prepend::First && first && at_start);
      const bool has = piece.starts_with(' ') || piece.starts_with(replacement_);
      if (wanted && !has) out += replacement_;
      for (const char c : piece) {
        if (c == ' ') {
          out += replacement_;
        } else {
          out += c;
        }
      }
    });
    if (!split_) return;
    pieces.split([&](Range range, std::vector<Range>& out) {
      Cutter cutter{range, Behavior::MergedWithNext, false, out};
      const auto piece = pieces.text.substr(range.begin, range.end - range.begin);
      for (auto at = piece.find(replacement_); at != std::string_view::npos;
           at = piece.find(replacement_, at + replacement_.size()))
        cutter.match(range.begin + at, range.begin + at + replacement_.size());
      cutter.finish();
    });
  }

 private:
  std::string replacement_;
  Prepend prepend_;
  bool split_;
};

std::unique_ptr<PreTokenizer> read_metaspace(JsonSection& section) {
  const auto replacement = section.string("replacement");
  section.ignore("str_rep");
  const auto add_prefix = section.boolean("add_prefix_space", true);
  const auto scheme =
      section.string_or_none("prepend_scheme").value_or(add_prefix ? "always" : "never");
  if (replacement.empty()) section.corrupt("replacement", "is empty");
  if (scheme != "always" && scheme != "never" && scheme != "first")
    section.corrupt("prepend_scheme", "is '" + scheme + "'; there are: always never first");
  if (!add_prefix && scheme != "never")
    section.corrupt("prepend_scheme", "contradicts add_prefix_space");
  const auto prepend = scheme == "always"  ? Metaspace::Prepend::Always
                       : scheme == "first" ? Metaspace::Prepend::First
                                           : Metaspace::Prepend::Never;
  return std::make_unique<Metaspace>(replacement, prepend, section.boolean("split", true));
}

std::unique_ptr<PreTokenizer> read_split(JsonSection& section) {
  const auto pattern = read_pattern(section, "pattern");
  const auto behavior = read_behavior(section, Behavior::Isolated);
  const bool invert = section.boolean("invert", false);
  constexpr std::string_view head =
      "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}";
  constexpr std::string_view tail =
      "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";
  // These match every character, so kept pieces and isolated ones are the same.
  const bool whole = (behavior == Behavior::Isolated) || (behavior == Behavior::Removed && invert);
  if (pattern.is_regex && whole && pattern.text.starts_with(head) && pattern.text.ends_with(tail)) {
    const auto middle =
        pattern.text.substr(head.size(), pattern.text.size() - head.size() - tail.size());
    if (middle.empty()) return std::make_unique<Gpt4Split>(1);
    if (middle == "{1,3}") return std::make_unique<Gpt4Split>(3);
  }
  if (pattern.is_regex && whole &&
      pattern.text ==
          "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+")
    return std::make_unique<Gpt2Split>();
  return std::make_unique<PatternSplit>(pattern, behavior, invert, section.where("pattern"));
}

bool is_digit_char(UChar32 c) { return (U_GET_GC_MASK(c) & U_GC_N_MASK) != 0; }

void read_byte_level(JsonSection& section, PreTokenizers& out) {
  const bool prefix = section.boolean("add_prefix_space", true);
  out.add_prefix_space = prefix;
  if (prefix) out.steps.push_back(std::make_unique<PrefixSpace>());
  if (section.boolean("use_regex", true)) out.steps.push_back(std::make_unique<Gpt2Split>());
  section.ignore("trim_offsets");  // concerns offsets only
  out.steps.push_back(std::make_unique<SpellBytes>());
}

void read_steps(JsonSection section, PreTokenizers& out, int depth) {
  const auto type = section.string("type");
  auto& steps = out.steps;
  if (type == "ByteLevel") {
    read_byte_level(section, out);
  } else if (type == "Split") {
    steps.push_back(read_split(section));
  } else if (type == "Digits") {
    const auto behavior =
        section.boolean("individual_digits", false) ? Behavior::Isolated : Behavior::Contiguous;
    steps.push_back(std::make_unique<CharSplit>(is_digit_char, behavior));
  } else if (type == "Punctuation") {
    steps.push_back(
        std::make_unique<CharSplit>(is_punctuation, read_behavior(section, Behavior::Isolated)));
  } else if (type == "Whitespace") {
    steps.push_back(std::make_unique<WordSplit>());
  } else if (type == "WhitespaceSplit") {
    steps.push_back(std::make_unique<CharSplit>(is_space, Behavior::Removed));
  } else if (type == "CharDelimiterSplit") {
    const auto text = section.string("delimiter");
    std::size_t at = 0;
    const auto delimiter = text.empty() ? U_SENTINEL : next_char(text, at);
    if (text.empty() || at != text.size()) section.corrupt("delimiter", "should be one character");
    steps.push_back(std::make_unique<DelimiterSplit>(delimiter));
  } else if (type == "BertPreTokenizer") {
    out.bert = steps.empty() && depth == 0;
    steps.push_back(std::make_unique<CharSplit>(is_space, Behavior::Removed));
    steps.push_back(std::make_unique<CharSplit>(is_punctuation, Behavior::Isolated));
  } else if (type == "Metaspace") {
    steps.push_back(read_metaspace(section));
  } else if (type == "Sequence") {
    if (depth > 4) section.unsupported("pretokenizers", "is a sequence in a sequence, over 4 deep");
    for (auto& step : section.sections("pretokenizers")) read_steps(step, out, depth + 1);
  } else {
    section.unsupported("type", "'" + type +
                                    "' is not supported; there are: ByteLevel Split Digits "
                                    "Punctuation Whitespace WhitespaceSplit "
                                    "CharDelimiterSplit BertPreTokenizer Metaspace Sequence");
  }
  section.finish();
}

}  // namespace

PreTokenizers read_pre_tokenizer(JsonSection section) {
  PreTokenizers out;
  read_steps(std::move(section), out, 0);
  if (!out.steps.empty() && dynamic_cast<SpellBytes*>(out.steps.back().get())) {
    out.steps.pop_back();
    out.spell_bytes = true;
  }
  return out;
}

}  // namespace troupe::detail
