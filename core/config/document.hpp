#pragma once

#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

namespace troupe::detail {

/// A configuration file as values, with where each key stands. JSON and YAML end up here, and so does what a plugin's
/// fields say; everything after this is the same for all three.
struct Document {
  std::string name;                             ///< what messages begin with: the file as the user gave it
  nlohmann::ordered_json root = nlohmann::ordered_json::object();
  std::map<std::string, int> lines;             ///< of keys by dotted path, from 1; none: not from a file
  std::map<std::string, std::string> origins;   ///< by dotted path, where a value came from if not from `name`
  bool yaml = false;                            ///< "true" in quotes is a boolean, as for accelerate's launcher

  /// "name:line: path: ".
  [[nodiscard]] std::string at(const std::string& path) const;
  /// "name:path", or the path's own origin.
  [[nodiscard]] std::string origin(const std::string& path) const;
  [[noreturn]] void fail(const std::string& path, const std::string& text) const;
};

/// Parses JSON (comments are allowed, as DeepSpeed's reader does) whose root is an object. Rejects duplicate keys, more
/// than 32 levels and more than 10,000 values. Throws Failure{InvalidConfig} with file and line.
[[nodiscard]] Document parse_json(std::string_view text, std::string name);
/// The same for one YAML document whose root is a mapping; scalars as YAML 1.1 reads them (yes, no, on, off are
/// booleans), aliases are expanded to at most 10,000 values.
[[nodiscard]] Document parse_yaml(const std::string& text, std::string name);
/// At most 1 MiB of a regular file. Throws Failure{FileNotFound, StorageUnavailable, InvalidConfig}.
[[nodiscard]] std::string read_text(const std::string& file);

}  // namespace troupe::detail
