#include "json_section.hpp"

#include <fstream>
#include <iterator>
#include <troupe/errors.hpp>

namespace troupe::detail {

namespace fs = std::filesystem;
using nlohmann::json;

namespace {

std::string shown(const json& value) {
  auto text = value.dump(-1, ' ', false, json::error_handler_t::replace);
  if (text.size() > 60) text = text.substr(0, 57) + "...";
  return text;
}

}  // namespace

JsonSection::JsonSection(const json& value, std::string file, std::string path)
    : object_(&value), file_(std::move(file)), path_(std::move(path)) {
  if (!value.is_object())
    throw Failure{Errc::FileCorrupt, file_ + ": " + (path_.empty() ? "the file" : path_) +
                                         " should be an object, not " + shown(value)};
}

std::string JsonSection::where(const char* key) const {
  return file_ + ": " + path_ + (path_.empty() ? "" : ".") + key;
}

void JsonSection::corrupt(const char* key, const std::string& text) const {
  throw Failure{Errc::FileCorrupt, where(key) + " " + text};
}

void JsonSection::unsupported(const char* key, const std::string& text) const {
  throw Failure{Errc::Unsupported, where(key) + " " + text};
}

const json* JsonSection::find(const char* key) {
  used_.insert(key);
  const auto found = object_->find(key);
  return found == object_->end() || found->is_null() ? nullptr : &*found;
}

bool JsonSection::has(const char* key) const {
  const auto found = object_->find(key);
  return found != object_->end() && !found->is_null();
}

std::optional<std::string> JsonSection::string_or_none(const char* key) {
  const auto* const found = find(key);
  if (!found) return std::nullopt;
  if (!found->is_string()) corrupt(key, "should be a string, not " + shown(*found));
  return found->get<std::string>();
}

std::string JsonSection::string(const char* key) {
  auto found = string_or_none(key);
  if (!found) corrupt(key, "is missing");
  return *std::move(found);
}

bool JsonSection::boolean(const char* key, bool otherwise) {
  const auto* const found = find(key);
  if (!found) return otherwise;
  if (!found->is_boolean()) corrupt(key, "should be true or false, not " + shown(*found));
  return found->get<bool>();
}

std::int64_t JsonSection::integer(const char* key, std::int64_t otherwise) {
  const auto* const found = find(key);
  if (!found) return otherwise;
  const bool fits = found->is_number_integer() &&
                    (!found->is_number_unsigned() || found->get<std::uint64_t>() <= INT64_MAX);
  if (!fits) corrupt(key, "should be a whole number, not " + shown(*found));
  return found->get<std::int64_t>();
}

JsonSection JsonSection::section(const char* key) {
  return {value(key), file_, path_ + (path_.empty() ? "" : ".") + key};
}

std::vector<JsonSection> JsonSection::sections(const char* key) {
  const auto& list = value(key);
  if (!list.is_array()) corrupt(key, "should be a list, not " + shown(list));
  std::vector<JsonSection> out;
  for (std::size_t i = 0; i < list.size(); ++i)
    out.emplace_back(list[i], file_,
                     path_ + (path_.empty() ? "" : ".") + key + "[" + std::to_string(i) + "]");
  return out;
}

const json& JsonSection::value(const char* key) {
  const auto* const found = find(key);
  if (!found) corrupt(key, "is missing");
  return *found;
}

void JsonSection::finish() const {
  for (const auto& item : object_->items()) {
    if (!used_.contains(item.key()) && !item.value().is_null())
      unsupported(item.key().c_str(),
                  "is a setting that is not known, so it is not guessed what it does; it is " +
                      shown(item.value()));
  }
}

std::string read_tokenizer_file(const fs::path& file) {
  std::error_code error;
  const auto size = fs::file_size(file, error);
  if (error)
    throw Failure{Errc::FileNotFound, file.string() + ": no such file, or it may not be read"};
  if (size > kMaxTokenizerFileBytes)
    throw Failure{Errc::FileCorrupt, file.string() + ": is larger than 200 MB"};
  std::ifstream in{file, std::ios::binary};
  if (!in)
    throw Failure{Errc::FileNotFound, file.string() + ": no such file, or it may not be read"};
  std::string out{std::istreambuf_iterator<char>{in}, {}};
  if (in.bad()) throw Failure{Errc::StorageUnavailable, file.string() + ": cannot be read"};
  return out;
}

void write_tokenizer_file(const fs::path& file, std::string_view text) {
  std::ofstream out{file, std::ios::binary};
  if (!(out << text).flush())
    throw Failure{Errc::StorageUnavailable, file.string() + ": cannot be written"};
}

json parse_json_object(const std::string& text, const std::string& file) {
  json out;
  try {
    out = json::parse(text);
  } catch (const json::exception& error) {
    throw Failure{Errc::FileCorrupt, file + ": is no JSON: " + error.what()};
  }
  if (!out.is_object()) throw Failure{Errc::FileCorrupt, file + ": holds no JSON object"};
  return out;
}

}  // namespace troupe::detail
