#pragma once

#include <troupe/data_config.hpp>

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace troupe {

class TrainingStream;

/// The data sets of a rank: those that `main` lists, and the streams that its train function has opened.
///
/// Threads: the rank's own.
class RankDatasets {
 public:
  RankDatasets(DatasetFunctions functions, const Config& config, DataConfig data)
      : functions_(std::move(functions)), config_(config), data_(std::move(data)) {}

  /// Throws Failure{NotFound} that lists the names there are.
  [[nodiscard]] const DatasetFunction& function(const std::string& name) const;
  [[nodiscard]] const Config& config() const noexcept { return config_; }
  [[nodiscard]] const DataConfig& data_config() const noexcept { return data_; }

  /// By name; nullptr: not opened yet.
  [[nodiscard]] std::shared_ptr<TrainingStream> find(const std::string& name) const;
  void add(const std::string& name, std::shared_ptr<TrainingStream> stream);
  [[nodiscard]] const std::map<std::string, std::shared_ptr<TrainingStream>>& streams() const noexcept { return streams_; }
  /// Told of each stream that is opened from now on, by its name; replaces the one before. Set by an Accelerator.
  void set_opened(std::function<void(const std::shared_ptr<TrainingStream>&)> opened) { opened_ = std::move(opened); }

 private:
  DatasetFunctions functions_;
  const Config& config_;  // the train function's own: keys that make a data set count as read
  DataConfig data_;
  std::map<std::string, std::shared_ptr<TrainingStream>> streams_;
  std::function<void(const std::shared_ptr<TrainingStream>&)> opened_;
};

}  // namespace troupe
