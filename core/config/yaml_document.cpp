#include "document.hpp"

#include <troupe/errors.hpp>
#include <yaml-cpp/yaml.h>

#include <array>
#include <charconv>
#include <cmath>
#include <optional>

namespace troupe::detail {

namespace {

using Json = nlohmann::ordered_json;

constexpr int max_depth = 32;
constexpr int max_values = 10'000;

/// Numbers that YAML writers write; none: a string.
std::optional<Json> number_from(const std::string& text) {
  const char* const begin = text.data() + (text.starts_with('+') ? 1 : 0);
  const char* const end = text.data() + text.size();
  std::int64_t integer = 0;
  if (const auto [at, error] = std::from_chars(begin, end, integer); error == std::errc{} && at == end) return Json(integer);
  double real = 0;
  const auto [at, error] = std::from_chars(begin, end, real);
  if (error == std::errc{} && at == end && std::isfinite(real)) return Json(real);
  return std::nullopt;
}

Json scalar_from(const YAML::Node& node) {
  const auto& text = node.Scalar();
  if (node.Tag() == "!") return text;  // in quotes
  for (const char* word : {"", "~", "null", "Null", "NULL"}) {
    if (text == word) return nullptr;
  }
  for (const char* word : {"true", "True", "TRUE", "yes", "Yes", "YES", "on", "On", "ON"}) {
    if (text == word) return true;
  }
  for (const char* word : {"false", "False", "FALSE", "no", "No", "NO", "off", "Off", "OFF"}) {
    if (text == word) return false;
  }
  if (auto number = number_from(text)) return *number;
  return text;
}

/// Copies nodes into a Document, bounded whatever the aliases do.
class Copier {
 public:
  explicit Copier(Document& document) : document_(document) {}

  Json copy(const YAML::Node& node, const std::string& path, int depth) {
    if (depth > max_depth) fail(node, path, "is nested deeper than " + std::to_string(max_depth) + " levels");
    if (++values_ > max_values) fail(node, path, "holds more than " + std::to_string(max_values) + " values, aliases expanded");
    switch (node.Type()) {
      case YAML::NodeType::Scalar: return scalar_from(node);
      case YAML::NodeType::Sequence: return copy_list(node, path, depth);
      case YAML::NodeType::Map: return copy_map(node, path, depth);
      case YAML::NodeType::Null:
      case YAML::NodeType::Undefined: break;
    }
    return nullptr;
  }

 private:
  Json copy_list(const YAML::Node& node, const std::string& path, int depth) {
    Json list = Json::array();
    for (const auto& item : node) list.push_back(copy(item, path, depth + 1));
    return list;
  }

  Json copy_map(const YAML::Node& node, const std::string& path, int depth) {
    Json map = Json::object();
    for (const auto& entry : node) {
      const YAML::Node& key = entry.first;
      if (!key.IsScalar()) fail(key, path, "has a key that is no word");
      const auto& name = key.Scalar();
      const auto inner = path.empty() ? name : path + "." + name;
      const int line = key.Mark().line + 1;
      if (map.contains(name)) {
        const int first = document_.lines[inner];
        document_.lines[inner] = line;
        document_.fail(inner, "is given twice, first in line " + std::to_string(first) + "; keep one");
      }
      document_.lines[inner] = line;
      map[name] = copy(entry.second, inner, depth + 1);
    }
    return map;
  }

  [[noreturn]] void fail(const YAML::Node& node, const std::string& path, const std::string& text) {
    document_.lines.try_emplace(path, node.Mark().line + 1);
    document_.fail(path, text);
  }

  Document& document_;
  int values_ = 0;
};

}  // namespace

Document parse_yaml(const std::string& text, std::string name) {
  Document document;
  document.name = std::move(name);
  document.yaml = true;
  try {
    const auto nodes = YAML::LoadAll(text);
    if (nodes.size() > 1) document.fail("", "holds " + std::to_string(nodes.size()) + " YAML documents; keep one");
    if (nodes.empty() || !nodes.front().IsMap()) document.fail("", "must be a YAML mapping, 'key: value' lines");
    document.root = Copier{document}.copy(nodes.front(), "", 0);
  } catch (const YAML::Exception& error) {
    throw Failure{Errc::InvalidConfig, document.name + ":" + std::to_string(error.mark.line + 1) + ": is no valid YAML: " + error.msg};
  }
  return document;
}

}  // namespace troupe::detail
