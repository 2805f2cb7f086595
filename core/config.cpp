#include <troupe/config.hpp>

#include <algorithm>

namespace troupe {

namespace {

std::size_t edit_distance(std::string_view a, std::string_view b) {
  std::vector<std::size_t> row(b.size() + 1);
  for (std::size_t j = 0; j <= b.size(); ++j) row[j] = j;
  for (std::size_t i = 1; i <= a.size(); ++i) {
    std::size_t diagonal = row[0];
    row[0] = i;
    for (std::size_t j = 1; j <= b.size(); ++j) {
      const std::size_t above = row[j];
      row[j] = std::min({above + 1, row[j - 1] + 1, diagonal + (a[i - 1] != b[j - 1])});
      diagonal = above;
    }
  }
  return row[b.size()];
}

}  // namespace

std::string nearest_name(std::string_view word, const std::vector<std::string>& candidates) {
  std::string best;
  std::size_t best_distance = std::max<std::size_t>(1, word.size() / 3) + 1;
  for (const auto& candidate : candidates) {
    const auto distance = edit_distance(word, candidate);
    if (distance < best_distance) {
      best = candidate;
      best_distance = distance;
    }
  }
  return best;
}

Config::Config(std::initializer_list<std::pair<const std::string, nlohmann::ordered_json>> values) : Config() {
  for (const auto& [key, value] : values) json_[key] = value;
}

Config::Config(nlohmann::ordered_json object) : json_(std::move(object)) {
  if (!json_.is_object()) throw Failure{Errc::InvalidConfig, "train_loop_config must be a JSON object"};
}

std::vector<std::string> Config::unused() const {
  std::vector<std::string> keys;
  for (const auto& [key, value] : json_.items()) {
    if (!read_.contains(key)) keys.push_back(key);
  }
  return keys;
}

const nlohmann::ordered_json& Config::at(const std::string& key) const {
  read_.insert(key);
  if (const auto found = json_.find(key); found != json_.end()) return *found;
  std::vector<std::string> keys;
  for (const auto& item : json_.items()) keys.push_back(item.key());
  const auto nearest = nearest_name(key, keys);
  throw Failure{Errc::InvalidConfig, "train_loop_config has no key '" + key + "'" +
                                         (nearest.empty() ? "" : "; did you mean '" + nearest + "'?")};
}

void Config::wrong_type(const std::string& key, const char* wanted) const {
  throw Failure{Errc::InvalidConfig,
                "train_loop_config key '" + key + "' must be " + wanted + ", not " + json_.at(key).dump()};
}

}  // namespace troupe
