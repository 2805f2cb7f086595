#include <troupe/errors.hpp>
#include <troupe/metrics.hpp>

#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>

namespace troupe {

void Metrics::set(Entry entry) {
  for (auto& existing : entries_) {
    if (existing.name == entry.name) {
      existing.value = std::move(entry.value);
      return;
    }
  }
  entries_.push_back(std::move(entry));
}

const MetricValue* Metrics::find(std::string_view name) const noexcept {
  for (const auto& entry : entries_) {
    if (entry.name == name) return &entry.value;
  }
  return nullptr;
}

std::optional<double> Metrics::number(std::string_view name) const noexcept {
  const auto* value = find(name);
  if (!value) return std::nullopt;
  if (const auto* d = std::get_if<double>(value)) return *d;
  if (const auto* i = std::get_if<std::int64_t>(value)) return static_cast<double>(*i);
  if (const auto* b = std::get_if<bool>(value)) return *b ? 1.0 : 0.0;
  return std::nullopt;
}

namespace {

nlohmann::ordered_json value_to_json(const MetricValue& value) {
  const auto* number = std::get_if<double>(&value);
  if (!number) return std::visit([](const auto& v) { return nlohmann::ordered_json(v); }, value);
  if (std::isnan(*number)) return "NaN";
  if (std::isinf(*number)) return *number > 0 ? "Infinity" : "-Infinity";
  return *number;
}

MetricValue value_from_json(const std::string& name, const nlohmann::ordered_json& value) {
  if (value.is_boolean()) return value.get<bool>();
  if (value.is_number_integer()) return value.get<std::int64_t>();
  if (value.is_number()) return value.get<double>();
  if (!value.is_string()) throw Failure{Errc::FileCorrupt, "metric '" + name + "' is neither a number, a string nor a truth value"};
  const auto text = value.get<std::string>();
  if (text == "NaN") return std::numeric_limits<double>::quiet_NaN();
  if (text == "Infinity") return std::numeric_limits<double>::infinity();
  if (text == "-Infinity") return -std::numeric_limits<double>::infinity();
  return text;
}

}  // namespace

nlohmann::ordered_json to_json(const Metrics& metrics) {
  auto json = nlohmann::ordered_json::object();
  for (const auto& [name, value] : metrics) json[name] = value_to_json(value);
  return json;
}

Metrics metrics_from_json(const nlohmann::ordered_json& json) {
  if (!json.is_object()) throw Failure{Errc::FileCorrupt, "metrics are not a JSON object"};
  Metrics metrics;
  for (const auto& [name, value] : json.items()) metrics.set({name, value_from_json(name, value)});
  return metrics;
}

}  // namespace troupe
