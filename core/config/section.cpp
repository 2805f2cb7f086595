#include "section.hpp"

#include <troupe/config.hpp>

#include <algorithm>
#include <cctype>
#include <cmath>

namespace troupe::detail {

namespace {

using Json = nlohmann::ordered_json;

const Json& empty_object() {
  static const Json object = Json::object();
  return object;
}

/// The object at a dotted path, or an empty one. Keys with dots do not matter: no format has any.
const Json* object_at(const Document& document, const std::string& path) {
  const Json* object = &document.root;
  for (std::size_t from = 0; from < path.size();) {
    const auto dot = std::min(path.find('.', from), path.size());
    const auto found = object->find(path.substr(from, dot - from));
    if (found == object->end() || found->is_null()) return &empty_object();
    if (!found->is_object()) document.fail(path.substr(0, dot), "must be a section of keys, not " + found->dump());
    object = &*found;
    from = dot + 1;
  }
  return object;
}

std::string lower(std::string text) {
  std::transform(text.begin(), text.end(), text.begin(), [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  return text;
}

std::string join(const std::vector<std::string>& words) {
  std::string text;
  for (const auto& word : words) text += (text.empty() ? "" : ", ") + word;
  return text;
}

std::string shown(const Json& value) {
  auto text = value.dump(-1, ' ', false, Json::error_handler_t::replace);
  if (text.size() > 60) text = text.substr(0, 57) + "...";
  return text;
}

std::string shown(double value) { return shown(Json(value)); }

}  // namespace

void check_keys(const Document& document, const std::string& path, std::span<const KeyRule> rules, std::vector<std::string>& notes) {
  for (const auto& [key, value] : object_at(document, path)->items()) {
    const auto full = path.empty() ? key : path + "." + key;
    const auto rule = std::find_if(rules.begin(), rules.end(), [&key = key](const KeyRule& r) { return r.key == key; });
    if (rule == rules.end()) {
      std::vector<std::string> names;
      for (const auto& r : rules) {
        if (r.fate == Fate::Honoured || r.fate == Fate::Default) names.emplace_back(r.key);
      }
      const auto nearest = nearest_name(key, names);
      document.fail(full, "is unknown" + (nearest.empty() ? std::string{} : "; did you mean '" + nearest + "'?"));
    }
    const std::string text{rule->text};
    if (rule->fate == Fate::Dead) document.fail(full, "has no effect; remove it" + (text.empty() ? "" : " (" + text + ")"));
    if (rule->fate == Fate::Removed) document.fail(full, "no longer exists in DeepSpeed; " + text);
    if (rule->fate == Fate::Default && !value.is_null()) {
      const auto allowed = Json::parse(rule->allowed);
      if (std::find(allowed.begin(), allowed.end(), value) == allowed.end()) {
        document.fail(full, "cannot be " + shown(value) + " here; " + text);
      }
      if (!rule->note.empty()) notes.push_back(document.origin(full) + ": " + std::string{rule->note});
    }
  }
}

void check_all_read(const Document& document, const std::string& path, std::span<const KeyRule> rules, const std::set<std::string>& read) {
  for (const auto& [key, value] : object_at(document, path)->items()) {
    const auto full = path.empty() ? key : path + "." + key;
    const auto rule = std::find_if(rules.begin(), rules.end(), [&key = key](const KeyRule& r) { return r.key == key; });
    if (rule == rules.end() || rule->fate != Fate::Honoured || value.is_null() || read.contains(full)) continue;
    document.fail(full, "has no effect in this configuration" +
                            (rule->text.empty() ? std::string{} : " (" + std::string{rule->text} + ")") + "; remove it");
  }
}

Section::Section(const Document& document, std::string path, std::set<std::string>& read)
    : document_(document), path_(std::move(path)), object_(object_at(document, path_)), read_(read) {}

const Json* Section::find(const std::string& key) const {
  read_.insert(path(key));
  const auto found = object_->find(key);
  return found == object_->end() || found->is_null() ? nullptr : &*found;
}

bool Section::has(const std::string& key) const {
  const auto found = object_->find(key);
  return found != object_->end() && !found->is_null();
}

bool Section::is_auto(const std::string& key) const {
  const auto* value = find(key);
  return value != nullptr && value->is_string() && value->get_ref<const std::string&>() == "auto";
}

void Section::wrong(const std::string& key, const std::string& wanted) const {
  fail(key, "must be " + wanted + ", not " + shown(*find(key)));
}

std::optional<std::int64_t> Section::integer(const std::string& key, std::int64_t least, std::int64_t most) const {
  const auto* value = find(key);
  if (value == nullptr) return std::nullopt;
  const auto range = most == std::numeric_limits<std::int64_t>::max()
                         ? "a whole number of at least " + std::to_string(least)
                         : "a whole number from " + std::to_string(least) + " to " + std::to_string(most);
  if (!value->is_number()) wrong(key, range);
  std::int64_t number = 0;
  if (value->is_number_unsigned()) {
    const auto large = value->get<std::uint64_t>();
    if (large > static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max())) wrong(key, range);
    number = static_cast<std::int64_t>(large);
  } else if (value->is_number_integer()) {
    number = value->get<std::int64_t>();
  } else {
    const auto real = value->get<double>();
    if (!(std::abs(real) < 9e18) || real != std::floor(real)) wrong(key, range);
    number = static_cast<std::int64_t>(real);
  }
  if (number < least || number > most) wrong(key, range);
  return number;
}

std::optional<double> Section::number(const std::string& key, double least, double most) const {
  const auto* value = find(key);
  if (value == nullptr) return std::nullopt;
  const auto range = most == std::numeric_limits<double>::max() ? "a number of at least " + shown(least)
                                                                : "a number from " + shown(least) + " to " + shown(most);
  if (!value->is_number()) wrong(key, range);
  const auto number = value->get<double>();
  if (!std::isfinite(number) || number < least || number > most) wrong(key, range);
  return number;
}

std::optional<bool> Section::boolean(const std::string& key) const {
  const auto* value = find(key);
  if (value == nullptr) return std::nullopt;
  if (value->is_boolean()) return value->get<bool>();
  if (document_.yaml && value->is_string()) {
    const auto word = lower(value->get<std::string>());
    if (word == "true" || word == "yes" || word == "on") return true;
    if (word == "false" || word == "no" || word == "off") return false;
  }
  wrong(key, "true or false");
}

std::optional<std::string> Section::text(const std::string& key) const {
  const auto* value = find(key);
  if (value == nullptr) return std::nullopt;
  if (!value->is_string()) wrong(key, "text");
  return value->get<std::string>();
}

std::optional<std::string> Section::choice(const std::string& key, const std::vector<std::string>& words) const {
  const auto* value = find(key);
  if (value == nullptr) return std::nullopt;
  std::string word;
  if (value->is_string()) word = lower(value->get<std::string>());
  if (value->is_boolean() && document_.yaml) word = value->get<bool>() ? "yes" : "no";  // an unquoted no
  for (const auto& candidate : words) {
    if (lower(candidate) == word) return candidate;
  }
  std::vector<std::string> lowered;
  for (const auto& candidate : words) lowered.push_back(lower(candidate));
  auto nearest = value->is_string() ? nearest_name(word, lowered) : std::string{};
  if (!nearest.empty()) nearest = words[static_cast<std::size_t>(std::find(lowered.begin(), lowered.end(), nearest) - lowered.begin())];
  wrong(key, "one of " + join(words) + (nearest.empty() ? "" : " (did you mean '" + nearest + "'?)"));
}

std::optional<std::vector<std::string>> Section::words(const std::string& key) const {
  const auto* value = find(key);
  if (value == nullptr) return std::nullopt;
  std::vector<std::string> words;
  if (value->is_array()) {
    for (const auto& item : *value) {
      if (!item.is_string()) wrong(key, "a list of words");
      words.push_back(item.get<std::string>());
    }
  } else if (value->is_string()) {
    const auto& text = value->get_ref<const std::string&>();
    for (std::size_t from = 0; from <= text.size();) {
      const auto comma = std::min(text.find(',', from), text.size());
      words.push_back(text.substr(from, comma - from));
      from = comma + 1;
    }
  } else {
    wrong(key, "words, in a list or separated by commas");
  }
  for (auto& word : words) {
    std::erase_if(word, [](unsigned char c) { return std::isspace(c) != 0; });
    if (word.empty()) wrong(key, "words without an empty one");
  }
  return words;
}

std::optional<std::vector<double>> Section::numbers(const std::string& key, std::size_t count) const {
  const auto* value = find(key);
  if (value == nullptr) return std::nullopt;
  const auto wanted = "a list of " + std::to_string(count) + " numbers";
  if (!value->is_array() || value->size() != count) wrong(key, wanted);
  std::vector<double> numbers;
  for (const auto& item : *value) {
    if (!item.is_number() || !std::isfinite(item.get<double>())) wrong(key, wanted);
    numbers.push_back(item.get<double>());
  }
  return numbers;
}

Section Section::section(const std::string& key) const {
  read_.insert(path(key));
  return Section{document_, path(key), read_};
}

}  // namespace troupe::detail
