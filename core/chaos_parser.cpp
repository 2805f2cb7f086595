#include <troupe/chaos.hpp>

#include <troupe/config.hpp>
#include <troupe/errors.hpp>

#include <algorithm>
#include <charconv>
#include <set>

namespace troupe {

namespace {

using Text = std::string_view;

constexpr std::uint64_t most = 1'000'000'000'000;

std::vector<Text> split(Text text, Text separators) {
  std::vector<Text> parts;
  for (std::size_t begin = 0; begin <= text.size();) {
    const auto end = std::min(text.find_first_of(separators, begin), text.size());
    parts.push_back(text.substr(begin, end - begin));
    begin = end + 1;
  }
  return parts;
}

std::vector<Text> words_of(Text text) {
  auto words = split(text, " \t\n");
  std::erase_if(words, [](Text word) { return word.empty(); });
  return words;
}

std::optional<std::uint64_t> number(Text text) {
  std::uint64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc{} || end != text.data() + text.size() || text.empty() || value > most) return std::nullopt;
  return value;
}

/// A number with one of these endings, times what the ending stands for.
std::optional<std::int64_t> scaled(Text text, const std::vector<std::pair<Text, std::int64_t>>& endings) {
  for (const auto& [ending, factor] : endings) {
    if (!text.ends_with(ending)) continue;
    const auto value = number(text.substr(0, text.size() - ending.size()));
    if (!value || *value > most / static_cast<std::uint64_t>(factor)) return std::nullopt;
    return static_cast<std::int64_t>(*value) * factor;
  }
  return std::nullopt;
}

/// Reads one fault; knows what to say when it cannot.
class FaultParser {
 public:
  explicit FaultParser(Text text) : text_(text) {}

  ChaosFault parse() {
    fault_.text = text_;
    for (const auto word : words_of(text_)) take(word);
    if (!seen_.contains("step")) bad("it has no step=; as step=5, step=5..9 or step=every:20");
    if (!seen_.contains("kind")) bad("it has no kind=; `troupe chaos --list` has them");
    return std::move(fault_);
  }

 private:
  [[noreturn]] void bad(const std::string& why) const {
    throw Failure{Errc::InvalidConfig, "chaos: in '" + std::string(text_) + "': " + why};
  }

  void take(Text word) {
    const auto sign = word.find('=');
    const std::string key{word.substr(0, sign)};
    if (sign == Text::npos) bad("'" + key + "' is no key=value");
    const auto value = word.substr(sign + 1);
    if (!seen_.insert(key).second) bad(key + "= is there twice");
    if (key == "rank") return rank(value);
    if (key == "step") return step(value);
    if (key == "kind") return kind(value);
    if (key == "attempt") return attempt(value);
    const auto nearest = nearest_name(key, {"rank", "step", "kind", "attempt", "seed"});
    if (key == "seed") bad("seed= is for the whole text; put it between ';'");
    bad("'" + key + "' is unknown; " + (nearest.empty() ? "there are rank, step, kind, attempt" : "did you mean '" + nearest + "'?"));
  }

  void rank(Text value) {
    if (value == "*") return;
    if (value == "any") {
      fault_.whose = ChaosFault::Ranks::Any;
      return;
    }
    fault_.whose = ChaosFault::Ranks::Listed;
    for (const auto part : split(value, ",")) {
      const auto rank = number(part);
      if (!rank || *rank > 16'383) bad("rank=" + std::string(value) + " is not understood; a rank, as 1, several, as 0,2, * or any");
      fault_.ranks.push_back(static_cast<int>(*rank));
    }
    std::sort(fault_.ranks.begin(), fault_.ranks.end());
  }

  void step(Text value) {
    const auto wrong = [&] { bad("step=" + std::string(value) + " is not understood; a step from 1, as 5, one of several, as 5..9, or every:20"); };
    const auto dots = value.find("..");
    const bool every = value.starts_with("every:");
    const auto first = number(every ? value.substr(6) : value.substr(0, dots));
    const auto last = dots == Text::npos ? first : number(value.substr(dots + 2));
    if (!first || !last || *first < 1 || *last < *first || (every && dots != Text::npos)) wrong();
    fault_.when = every ? ChaosFault::Steps::Every : dots == Text::npos ? ChaosFault::Steps::At : ChaosFault::Steps::Between;
    fault_.first = *first;
    fault_.last = *last;
  }

  void attempt(Text value) {
    fault_.attempt.reset();
    if (value == "*") return;
    fault_.attempt = number(value);
    if (!fault_.attempt || *fault_.attempt < 1) bad("attempt=" + std::string(value) + " is not understood; a number from 1, or *");
  }

  void kind(Text value) {
    for (const auto part : split(value, "|")) fault_.kinds.push_back(strike(part));
  }

  ChaosStrike strike(Text word) const {
    const auto colon = word.find(':');
    const std::string wanted{word.substr(0, colon)};
    const bool has_argument = colon != Text::npos;
    const auto argument = has_argument ? word.substr(colon + 1) : Text{};
    std::vector<std::string> names;
    for (int i = 0; i < num_chaos_kinds; ++i) {
      const auto kind = static_cast<ChaosKind>(i);
      if (wanted == name(kind)) return {kind, value_of(kind, has_argument, argument)};
      names.emplace_back(name(kind));
    }
    const auto nearest = nearest_name(wanted, names);
    bad("kind '" + wanted + "' is unknown; " + (nearest.empty() ? "`troupe chaos --list` has them" : "did you mean '" + nearest + "'?"));
  }

  std::int64_t value_of(ChaosKind kind, bool has_argument, Text argument) const {
    const std::string given = std::string(name(kind)) + (has_argument ? ":" + std::string(argument) : "");
    switch (kind) {
      case ChaosKind::Exit: {
        const auto code = number(has_argument ? argument : "3");
        if (!code || *code > 255) bad(given + ": an exit code is from 0 to 255");
        return static_cast<std::int64_t>(*code);
      }
      case ChaosKind::StorageFail: {
        const auto count = number(has_argument ? argument : "1");
        if (!count || *count < 1) bad(given + ": say how many writes fail, from 1");
        return static_cast<std::int64_t>(*count);
      }
      case ChaosKind::Slow:
      case ChaosKind::StorageSlow: {
        const auto time = scaled(argument, {{"ms", 1}, {"s", 1000}});
        if (!time || *time < 1) bad(given + ": say how much longer, as " + std::string(name(kind)) + ":50ms");
        return *time;
      }
      case ChaosKind::Oom: {
        const auto bytes = scaled(argument, {{"M", 1 << 20}, {"G", 1 << 30}});
        if (!bytes || *bytes < 1) bad(given + ": say where it ends, as oom:512M, so that it cannot take the whole machine");
        return *bytes;
      }
      default:
        if (has_argument) bad(given + ": " + std::string(name(kind)) + " takes no argument");
        return 0;
    }
  }

  const Text text_;
  ChaosFault fault_;
  std::set<std::string> seen_;
};

}  // namespace

ChaosPlan parse_chaos(const std::string& text) {
  std::vector<ChaosFault> faults;
  std::optional<std::uint64_t> seed;
  for (const auto part : split(text, ";")) {
    const auto words = words_of(part);
    if (words.empty()) continue;
    if (words.size() == 1 && words[0].starts_with("seed=")) {
      if (seed) throw Failure{Errc::InvalidConfig, "chaos: seed= is there twice"};
      seed = number(words[0].substr(5));
      if (!seed) throw Failure{Errc::InvalidConfig, "chaos: '" + std::string(words[0]) + "' is no number from 0"};
      continue;
    }
    const auto begin = part.find_first_not_of(" \t\n"), end = part.find_last_not_of(" \t\n");
    faults.push_back(FaultParser{part.substr(begin, end - begin + 1)}.parse());
  }
  return {std::move(faults), seed.value_or(0)};
}

}  // namespace troupe
