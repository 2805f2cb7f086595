#pragma once

#include <troupe/errors.hpp>

#include <memory>
#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <string_view>
#include <vector>

namespace troupe {

/// The closest of `candidates` to a misspelt `word` (edit distance at most a third of its length), or "".
[[nodiscard]] std::string nearest_name(std::string_view word, const std::vector<std::string>& candidates);

/// `train_loop_config`: named values for the train function. Strict: reading a missing key or the wrong type
/// throws Failure{InvalidConfig} naming the key and the nearest existing one; `unused()` lists what nobody read.
///
/// Threads: copies share no state; one copy a rank.
class Config {
 public:
  Config() : json_(nlohmann::ordered_json::object()) {}
  Config(std::initializer_list<std::pair<const std::string, nlohmann::ordered_json>> values);
  explicit Config(nlohmann::ordered_json object);

  template <class T>
  [[nodiscard]] T get(const std::string& key) const {
    return convert<T>(key, at(key));
  }
  template <class T>
  [[nodiscard]] T get_or(const std::string& key, T fallback) const {
    read_.insert(key);
    return has(key) ? convert<T>(key, json_.at(key)) : fallback;
  }
  [[nodiscard]] bool has(const std::string& key) const { return json_.contains(key); }
  void set(const std::string& key, nlohmann::ordered_json value) { json_[key] = std::move(value); }
  [[nodiscard]] std::vector<std::string> unused() const;
  [[nodiscard]] const nlohmann::ordered_json& json() const noexcept { return json_; }

 private:
  const nlohmann::ordered_json& at(const std::string& key) const;
  [[noreturn]] void wrong_type(const std::string& key, const char* wanted) const;
  template <class T>
  T convert(const std::string& key, const nlohmann::ordered_json& value) const {
    if constexpr (std::is_same_v<T, bool>) {
      if (!value.is_boolean()) wrong_type(key, "true or false");
    } else if constexpr (std::is_integral_v<T>) {
      if (!value.is_number_integer()) wrong_type(key, "an integer");
    } else if constexpr (std::is_floating_point_v<T>) {
      if (!value.is_number()) wrong_type(key, "a number");
    } else if constexpr (std::is_same_v<T, std::string>) {
      if (!value.is_string()) wrong_type(key, "a string");
    }
    return value.template get<T>();
  }

  nlohmann::ordered_json json_;
  mutable std::set<std::string> read_;
};

}  // namespace troupe
