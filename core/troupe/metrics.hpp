#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

namespace troupe {

/// One reported value. Doubles keep their bits on every path, NaN and infinity included.
using MetricValue = std::variant<bool, std::int64_t, double, std::string>;

/// Named values of one report, in the order in which the user gave them: `Metrics{{"epoch", 1}, {"loss", 0.3}}`.
class Metrics {
 public:
  struct Entry {
    std::string name;
    MetricValue value;
    Entry(std::string n, bool v) : name(std::move(n)), value(v) {}
    Entry(std::string n, int v) : name(std::move(n)), value(std::int64_t{v}) {}
    Entry(std::string n, std::int64_t v) : name(std::move(n)), value(v) {}
    Entry(std::string n, std::size_t v) : name(std::move(n)), value(static_cast<std::int64_t>(v)) {}
    Entry(std::string n, double v) : name(std::move(n)), value(v) {}
    Entry(std::string n, const char* v) : name(std::move(n)), value(std::string(v)) {}
    Entry(std::string n, std::string v) : name(std::move(n)), value(std::move(v)) {}
    Entry(std::string n, MetricValue v) : name(std::move(n)), value(std::move(v)) {}
    bool operator==(const Entry&) const = default;
  };

  Metrics() = default;
  Metrics(std::initializer_list<Entry> entries) : entries_(entries) {}
  /// Takes the entries as they are, as the initializer list does.
  [[nodiscard]] static Metrics from_entries(std::vector<Entry> entries) {
    Metrics metrics;
    metrics.entries_ = std::move(entries);
    return metrics;
  }

  /// Adds a value, or replaces the one of that name.
  void set(Entry entry);
  [[nodiscard]] const MetricValue* find(std::string_view name) const noexcept;
  /// The value as a number; nothing when missing or not numeric (a bool counts as 0 or 1).
  [[nodiscard]] std::optional<double> number(std::string_view name) const noexcept;
  [[nodiscard]] bool empty() const noexcept { return entries_.empty(); }
  [[nodiscard]] std::size_t size() const noexcept { return entries_.size(); }
  [[nodiscard]] auto begin() const noexcept { return entries_.begin(); }
  [[nodiscard]] auto end() const noexcept { return entries_.end(); }
  bool operator==(const Metrics&) const = default;

 private:
  std::vector<Entry> entries_;
};

/// JSON object in the same order. JSON has no NaN and no infinity: they are written as the strings "NaN",
/// "Infinity" and "-Infinity", and read back as numbers.
[[nodiscard]] nlohmann::ordered_json to_json(const Metrics& metrics);
[[nodiscard]] Metrics metrics_from_json(const nlohmann::ordered_json& json);

}  // namespace troupe
