#include <troupe/errors.hpp>
#include <troupe/instruct_data.hpp>

#include <array>
#include <fstream>
#include <nlohmann/json.hpp>
#include <optional>

namespace troupe {

namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;

/// A line of a file, for errors.
struct Place {
  const fs::path& file;
  std::size_t line = 0;
  [[noreturn]] void refuse(const std::string& text) const {
    throw Failure{Errc::DataMalformed, file.string() + ":" + std::to_string(line) + ": " + text};
  }
};

std::ifstream open(const fs::path& file) {
  if (!fs::exists(file)) throw Failure{Errc::FileNotFound, file.string() + ": there is no such file"};
  std::ifstream in{file, std::ios::binary};
  if (!in) throw Failure{Errc::StorageUnavailable, file.string() + ": cannot be opened"};
  return in;
}

const std::string& text_of(const Json& row, const char* key, const Place& place) {
  const auto& value = row.at(key);
  if (!value.is_string() || value.get_ref<const std::string&>().empty()) place.refuse("'" + std::string(key) + "' is no text, or empty");
  return value.get_ref<const std::string&>();
}

/// The template's rows: what is up to and with the answer's tag is the prompt.
TextExample from_input(const std::string& input, const CompletionTags& tags) {
  const auto answer = tags.answer_begin.empty() ? std::string::npos : input.find(tags.answer_begin);
  if (answer == std::string::npos) return {{}, input, {}};
  const auto begin = answer + tags.answer_begin.size();
  return {input.substr(0, begin), input.substr(begin), {}};
}

std::vector<ChatMessage> messages_of(const Json& row, const Place& place) {
  const auto& list = row.at("messages");
  if (!list.is_array() || list.empty()) place.refuse("'messages' is no list of messages");
  std::vector<ChatMessage> out;
  for (const auto& message : list) {
    if (!message.is_object() || !message.contains("role") || !message.contains("content")) place.refuse("a message lacks 'role' or 'content'");
    out.push_back({text_of(message, "role", place), text_of(message, "content", place)});
  }
  return out;
}

TextExample from_row(const Json& row, const CompletionTags& tags, const Place& place) {
  const auto has = [&](const char* key) { return row.contains(key); };
  if (has("question") && has("answer")) {
    const auto &question = text_of(row, "question", place), &answer = text_of(row, "answer", place);
    const auto prompt = format_completion_prompt(question, tags);
    return {prompt, format_completion(question, answer, tags).substr(prompt.size()), {}};
  }
  if (has("prompt") && has("completion")) return {text_of(row, "prompt", place), text_of(row, "completion", place), {}};
  if (has("messages")) return {{}, {}, messages_of(row, place)};
  if (has("input")) return from_input(text_of(row, "input", place), tags);
  if (has("text")) return {{}, text_of(row, "text", place), {}};
  place.refuse("has none of: question and answer; prompt and completion; messages; input; text");
}

std::vector<TextExample> read_json_lines(const fs::path& file, const CompletionTags& tags) {
  auto in = open(file);
  std::vector<TextExample> out;
  Place place{file};
  for (std::string line; std::getline(in, line);) {
    ++place.line;
    if (line.find_first_not_of(" \t\r") == std::string::npos) continue;
    const auto row = Json::parse(line, nullptr, /*allow_exceptions=*/false);
    if (!row.is_object()) place.refuse("is no JSON object");
    out.push_back(from_row(row, tags, place));
  }
  return out;
}

/// Documents with a blank line between them; lines keep their ends.
std::vector<TextExample> read_plain(const fs::path& file) {
  auto in = open(file);
  std::vector<TextExample> out;
  std::string document;
  const auto end_document = [&] {
    if (!document.empty()) out.push_back({{}, std::exchange(document, {}), {}});
  };
  for (std::string line; std::getline(in, line);) {
    if (line.ends_with('\r')) line.pop_back();
    if (line.find_first_not_of(" \t") == std::string::npos) {
      end_document();
    } else {
      document += line + "\n";
    }
  }
  end_document();
  return out;
}

}  // namespace

std::vector<TextExample> read_text_examples(const fs::path& file, const CompletionTags& tags) {
  const auto ending = file.extension();
  auto out = ending == ".jsonl" || ending == ".json" ? read_json_lines(file, tags) : read_plain(file);
  if (out.empty()) throw Failure{Errc::DataMalformed, file.string() + ": there is no text in it"};
  return out;
}

CompletionTags read_completion_tags(const fs::path& file) {
  const auto refuse = [&](const std::string& text) { throw Failure{Errc::InvalidConfig, file.string() + ": " + text}; };
  const auto json = Json::parse(open(file), nullptr, /*allow_exceptions=*/false);
  if (!json.is_object()) refuse("is no JSON object");
  const auto* key = json.contains("tokens") ? "tokens" : "special_tokens";
  if (!json.contains(key)) refuse("has no 'tokens' (or 'special_tokens')");
  const auto& list = json.at(key);
  if (!list.is_array() || list.size() != 4) refuse(std::string(key) + " is no list of four tags: before and after a question, before and after an answer");
  std::array<std::string, 4> tags;
  for (std::size_t i = 0; i < 4; ++i) {
    if (!list[i].is_string() || list[i].get_ref<const std::string&>().empty()) refuse(std::string(key) + " has a tag that is no text, or empty");
    tags[i] = list[i];
  }
  return {tags[0], tags[1], tags[2], tags[3]};
}

}  // namespace troupe
