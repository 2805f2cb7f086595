#pragma once

#include "document.hpp"

#include <cstdint>
#include <limits>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace troupe::detail {

/// What happens to a key that a format has.
enum class Fate : std::uint8_t {
  Honoured,  ///< read by the code that resolves the configuration; `text`: when it has an effect
  Default,   ///< only the values in `allowed` (a JSON array), which are what Troupe does; others: refused, `text` says what instead
  Dead,      ///< no effect upstream either: an error
  Removed    ///< no longer upstream: an error, `text` names the replacement
};

struct KeyRule {
  std::string_view key;
  Fate fate = Fate::Honoured;
  std::string_view text{};
  std::string_view allowed{};
  std::string_view note{};  ///< Default: told to the user when the key is there
};

/// Checks every key of one object against its format and against misspelling. Notes are appended.
void check_keys(const Document& document, const std::string& path, std::span<const KeyRule> rules, std::vector<std::string>& notes);

/// One object of a Document, read strictly: a value of another type or out of range is a Failure{InvalidConfig} with
/// file, line and key. null counts as absent. Remembers what was read.
class Section {
 public:
  Section(const Document& document, std::string path, std::set<std::string>& read);

  [[nodiscard]] bool has(const std::string& key) const;
  [[nodiscard]] bool is_auto(const std::string& key) const;
  /// Whole numbers may be written as 5e8.
  [[nodiscard]] std::optional<std::int64_t> integer(const std::string& key, std::int64_t least = 0,
                                                    std::int64_t most = std::numeric_limits<std::int64_t>::max()) const;
  [[nodiscard]] std::optional<double> number(const std::string& key, double least = 0,
                                             double most = std::numeric_limits<double>::max()) const;
  [[nodiscard]] std::optional<bool> boolean(const std::string& key) const;
  [[nodiscard]] std::optional<std::string> text(const std::string& key) const;
  /// A word of `words`, whatever its case.
  [[nodiscard]] std::optional<std::string> choice(const std::string& key, const std::vector<std::string>& words) const;
  /// Words in a list, or separated by commas.
  [[nodiscard]] std::optional<std::vector<std::string>> words(const std::string& key) const;
  [[nodiscard]] std::optional<std::vector<double>> numbers(const std::string& key, std::size_t count) const;
  /// Absent or null: a section without keys.
  [[nodiscard]] Section section(const std::string& key) const;

  [[nodiscard]] std::string path(const std::string& key) const { return path_.empty() ? key : path_ + "." + key; }
  [[nodiscard]] std::string origin(const std::string& key) const { return document_.origin(path(key)); }
  [[noreturn]] void fail(const std::string& key, const std::string& text) const { document_.fail(path(key), text); }

 private:
  [[nodiscard]] const nlohmann::ordered_json* find(const std::string& key) const;
  [[noreturn]] void wrong(const std::string& key, const std::string& wanted) const;

  const Document& document_;
  std::string path_;
  const nlohmann::ordered_json* object_;
  std::set<std::string>& read_;
};

/// Throws for the first honoured key that is there and was not read: it has no effect in this configuration.
void check_all_read(const Document& document, const std::string& path, std::span<const KeyRule> rules, const std::set<std::string>& read);

}  // namespace troupe::detail
