#include <troupe/data_config.hpp>

#include <vector>

namespace troupe {

namespace {

void check_name(const std::string& field, const std::string& wanted, const DatasetFunctions& datasets) {
  if (datasets.contains(wanted)) return;
  std::vector<std::string> names;
  std::string list;
  for (const auto& [name, make] : datasets) {
    names.push_back(name);
    list += (list.empty() ? "" : ", ") + name;
  }
  const auto nearest = nearest_name(wanted, names);
  throw Failure{Errc::NotFound, "DataConfig: " + field + " names the data set '" + wanted + "'; " +
                                    (names.empty() ? "the session has none" : nearest.empty() ? "the session has: " + list : "did you mean '" + nearest + "'?")};
}

void check(const std::string& where, const DataConfig::Options& options) {
  const auto fail = [&](const char* field, std::int64_t value, const char* range) {
    throw Failure{Errc::InvalidConfig, "DataConfig: " + where + "." + field + " = " + std::to_string(value) + "; it must be " + range};
  };
  constexpr int most_threads = 1024;
  if (options.memory_bytes < 0) fail("memory_bytes", options.memory_bytes, "at least 0");
  if (options.stall_deadline.count() < 0) fail("stall_deadline (ms)", options.stall_deadline.count(), "at least 0");
  if (options.num_threads < 0 || options.num_threads > most_threads) fail("num_threads", options.num_threads, "from 0 to 1024");
}

}  // namespace

void validate(const DataConfig& config, const DatasetFunctions& datasets) {
  if (config.datasets_to_split) {
    for (const auto& name : *config.datasets_to_split) check_name("datasets_to_split", name, datasets);
  }
  check("options", config.options);
  for (const auto& [name, options] : config.per_dataset) {
    check_name("per_dataset", name, datasets);
    check("per_dataset[\"" + name + "\"]", options);
  }
}

}  // namespace troupe
