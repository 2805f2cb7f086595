#pragma once

#include <cstdint>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <type_traits>
#include <troupe/errors.hpp>
#include <vector>

// Fields of Hugging Face's JSON files. A field that is missing or null leaves `out` as it is; `where` begins errors.

namespace troupe::detail {

/// Throws Failure{FileNotFound, FileCorrupt}.
[[nodiscard]] nlohmann::json read_json_object(const std::filesystem::path& file);
/// Replaces `file` at once. Throws Failure{StorageUnavailable}.
void write_json(const std::filesystem::path& file, const nlohmann::ordered_json& object);

[[noreturn]] void refuse_field(const nlohmann::json& value, const std::string& where, const char* key, const char* kind);

template <class Number>
void read_number(const nlohmann::json& object, const char* key, const std::string& where, Number& out) {
  const auto found = object.find(key);
  if (found == object.end() || found->is_null()) return;
  if (std::is_integral_v<Number> ? !found->is_number_integer() : !found->is_number()) refuse_field(*found, where, key, "a number");
  found->get_to(out);
}
void read_bool(const nlohmann::json& object, const char* key, const std::string& where, bool& out);
void read_text(const nlohmann::json& object, const char* key, const std::string& where, std::string& out);
/// A list of strings.
void read_texts(const nlohmann::json& object, const char* key, const std::string& where, std::vector<std::string>& out);
/// One token id, or a list of them, or null.
[[nodiscard]] std::vector<std::int64_t> read_tokens(const nlohmann::json& object, const char* key, const std::string& where);

}  // namespace troupe::detail
