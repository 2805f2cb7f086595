#pragma once

#include <troupe/config.hpp>
#include <troupe/dataset/cursor.hpp>
#include <troupe/dataset/source.hpp>

#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

namespace troupe {

class Dataset;  // troupe/dataset/dataset.hpp

/// Says what a data set is: where its rows come from and what is done to them. Called on every rank, with train_loop_config; it reads nothing yet.
using DatasetFunction = std::function<Dataset(const Config&)>;
/// The data sets of a program, by name.
using DatasetFunctions = std::map<std::string, DatasetFunction, std::less<>>;

/// How a run's data sets are divided over its ranks and read. Names as in Ray Train, where `equal` cannot be chosen.
struct DataConfig {
  struct Options {
    SplitEqual equal = SplitEqual::Pad;
    bool enable_shard_locality = true;  ///< ranks get what is on their own node first, where `fragment_nodes` says what is
    std::vector<int> fragment_nodes;    ///< of the source's fragments, the node that has it at hand (-1: any); empty: unknown
    std::int64_t memory_bytes = 0;      ///< for rows on their way to one rank; 0: the data set's own
    std::chrono::milliseconds stall_deadline{300'000};  ///< a rank that waits so long for a batch fails, naming the stage; 0: waits for ever
    BadRows bad_rows;                   ///< fail at rows that cannot be read, or skip and count them
    int num_threads = 0;                ///< that read and map for one rank; 0: the data set's own
    bool operator==(const Options&) const = default;
  };

  /// Nothing: all. Of the others each rank goes through every row.
  std::optional<std::set<std::string>> datasets_to_split;
  Options options;                       ///< of every data set but those in
  std::map<std::string, Options> per_dataset;

  [[nodiscard]] bool splits(const std::string& dataset) const { return !datasets_to_split || datasets_to_split->contains(dataset); }
  [[nodiscard]] const Options& options_of(const std::string& dataset) const {
    const auto found = per_dataset.find(dataset);
    return found == per_dataset.end() ? options : found->second;
  }
  bool operator==(const DataConfig&) const = default;
};

/// Throws Failure{InvalidConfig} naming the field, its value and the range; Failure{NotFound} for a name that is not among `datasets`.
void validate(const DataConfig& config, const DatasetFunctions& datasets);

}  // namespace troupe
