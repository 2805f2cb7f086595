#pragma once

#include <cstdint>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <vector>

namespace troupe::detail {

/// An object of a JSON file that is read strictly: a key of the wrong type is FileCorrupt, a key
/// nobody read is Unsupported, both named as file and path ("tokenizer.json:
/// pre_tokenizer.pattern").
class JsonSection {
 public:
  /// Throws when `value` is no object.
  JsonSection(const nlohmann::json& value, std::string file, std::string path);

  [[nodiscard]] bool has(const char* key) const;  ///< there and not null
  [[nodiscard]] std::string string(const char* key);
  [[nodiscard]] std::optional<std::string> string_or_none(const char* key);
  [[nodiscard]] bool boolean(const char* key, bool otherwise);
  [[nodiscard]] std::int64_t integer(const char* key, std::int64_t otherwise);
  [[nodiscard]] JsonSection section(const char* key);
  [[nodiscard]] std::vector<JsonSection> sections(const char* key);
  /// The value as it is; a missing key throws.
  [[nodiscard]] const nlohmann::json& value(const char* key);
  void ignore(const char* key) { used_.insert(key); }
  /// Throws Unsupported for the first key that was not asked for.
  void finish() const;

  [[nodiscard]] const std::string& file() const { return file_; }
  [[noreturn]] void corrupt(const char* key, const std::string& text) const;
  [[noreturn]] void unsupported(const char* key, const std::string& text) const;
  [[nodiscard]] std::string where(const char* key) const;  ///< "file: path.key"

 private:
  const nlohmann::json* find(const char* key);  // nullptr: missing or null

  const nlohmann::json* object_;
  std::string file_, path_;
  std::set<std::string, std::less<>> used_;
};

/// Largest JSON or text file of a tokenizer that is read.
inline constexpr std::uintmax_t kMaxTokenizerFileBytes = 200'000'000;

/// The whole file. Throws FileNotFound, FileCorrupt (too large), StorageUnavailable.
[[nodiscard]] std::string read_tokenizer_file(const std::filesystem::path& file);
void write_tokenizer_file(const std::filesystem::path& file, std::string_view text);
/// Throws FileCorrupt with the place when the text is no JSON object.
[[nodiscard]] nlohmann::json parse_json_object(const std::string& text, const std::string& file);

}  // namespace troupe::detail
