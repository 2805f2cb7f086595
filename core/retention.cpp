#include <troupe/group_rules.hpp>
#include <troupe/retention.hpp>

#include <algorithm>
#include <cmath>
#include <set>

namespace troupe {

namespace {

// Higher is better; nothing is worst.
std::optional<double> score(const CheckpointRecord& record, const CheckpointConfig& config) {
  if (!config.checkpoint_score_attribute) return static_cast<double>(record.index);
  const auto value = record.metrics.number(*config.checkpoint_score_attribute);
  if (!value || std::isnan(*value)) return std::nullopt;
  return config.checkpoint_score_order == "min" ? -*value : *value;
}

bool better(const CheckpointRecord& a, const CheckpointRecord& b, const CheckpointConfig& config) {
  const auto score_a = score(a, config);
  const auto score_b = score(b, config);
  if (score_a != score_b) return score_a > score_b;  // an empty optional is less than any number
  return a.index > b.index;
}

}  // namespace

const CheckpointRecord* best_checkpoint(const std::vector<CheckpointRecord>& records,
                                        const CheckpointConfig& config) {
  const auto best = std::min_element(
      records.begin(), records.end(),
      [&](const CheckpointRecord& a, const CheckpointRecord& b) { return better(a, b, config); });
  return best == records.end() ? nullptr : &*best;
}

std::vector<CheckpointRecord> worst_to_best(std::vector<CheckpointRecord> records, const CheckpointConfig& config) {
  std::sort(records.begin(), records.end(), [&](const CheckpointRecord& a, const CheckpointRecord& b) { return better(b, a, config); });
  return records;
}

std::optional<CheckpointRecord> Result::get_best_checkpoint(const std::string& metric, const std::string& mode) const {
  if (mode != "max" && mode != "min") {
    throw Failure{Errc::InvalidArgument, "get_best_checkpoint: mode is '" + mode + "'; it is 'max' or 'min'"};
  }
  const CheckpointConfig config{{}, metric, mode};
  const auto* best = troupe::best_checkpoint(checkpoints, config);
  if (!best || !score(*best, config)) return std::nullopt;
  return *best;
}

std::vector<std::uint64_t> checkpoints_to_delete(const std::vector<CheckpointRecord>& records,
                                                 const CheckpointConfig& config) {
  if (!config.num_to_keep || records.empty()) return {};
  std::vector<const CheckpointRecord*> ranking;
  for (const auto& record : records) ranking.push_back(&record);
  std::sort(ranking.begin(), ranking.end(), [&](const CheckpointRecord* a, const CheckpointRecord* b) {
    return better(*a, *b, config);
  });
  std::vector<std::uint64_t> doomed;
  for (std::size_t place = 0; place < ranking.size(); ++place) {
    const bool latest = ranking[place] == &records.back();
    if (static_cast<int>(place) >= *config.num_to_keep && !latest) doomed.push_back(ranking[place]->index);
  }
  std::sort(doomed.begin(), doomed.end());
  return doomed;
}

CheckpointAssembly::Pending& CheckpointAssembly::expect(int rank, std::uint64_t index, int num_writers) {
  auto [found, fresh] = pending_.try_emplace(index);
  auto& pending = found->second;
  const auto what = "checkpoint of report " + std::to_string(index) + ": ";
  if (fresh) {
    pending.checkpoint.index = index;
    pending.num_writers = num_writers;
  } else if (pending.num_writers != num_writers) {
    throw Failure{Errc::InvalidArgument, what + "rank " + std::to_string(rank) + " says num_writers " +
                                             std::to_string(num_writers) + ", others " + std::to_string(pending.num_writers)};
  }
  if (pending.checkpoint.directories.contains(rank) || pending.announced.contains(rank)) {
    throw Failure{Errc::InvalidArgument, what + "rank " + std::to_string(rank) + " reported it twice"};
  }
  return pending;
}

std::optional<CompleteCheckpoint> CheckpointAssembly::add(int rank, std::uint64_t index, const Metrics& metrics,
                                                          const std::string& directory, int num_writers) {
  if (given_up_.contains(index)) return std::nullopt;
  auto& [checkpoint, expected, announced] = expect(rank, index, num_writers);
  if (checkpoint.directories.empty() || rank < checkpoint.directories.begin()->first) checkpoint.metrics = metrics;
  checkpoint.directories.emplace(rank, directory);
  if (static_cast<int>(checkpoint.directories.size()) < expected) return std::nullopt;
  auto complete = std::move(checkpoint);
  pending_.erase(index);
  return complete;
}

void CheckpointAssembly::announce(int rank, std::uint64_t index, const Metrics& metrics, const std::string& directory, int num_writers) {
  if (given_up_.contains(index)) return;
  expect(rank, index, num_writers).announced.emplace(rank, Announced{metrics, directory});
}

std::optional<CompleteCheckpoint> CheckpointAssembly::written(int rank, std::uint64_t index) {
  const auto found = pending_.find(index);
  if (found == pending_.end()) return std::nullopt;
  const auto part = found->second.announced.extract(rank);
  if (part.empty()) return std::nullopt;
  return add(rank, index, part.mapped().metrics, part.mapped().directory, found->second.num_writers);
}

std::optional<CompleteCheckpoint> CheckpointAssembly::give_up(std::uint64_t index) {
  given_up_.insert(index);
  auto pending = pending_.extract(index);
  if (pending.empty()) return std::nullopt;
  auto& [checkpoint, num_writers, announced] = pending.mapped();
  for (const auto& [rank, part] : announced) checkpoint.directories.emplace(rank, part.directory);
  return std::move(checkpoint);
}

std::vector<std::string> CheckpointAssembly::incomplete() const {
  std::vector<std::string> lines;
  for (const auto& [index, pending] : pending_) {
    std::set<int> came;
    for (const auto& [rank, directory] : pending.checkpoint.directories) came.insert(rank);
    lines.push_back("checkpoint of report " + std::to_string(index) + ": " + std::to_string(came.size()) + " of " +
                    std::to_string(pending.num_writers) + " writers came (" + name_ranks(came) + ")");
  }
  return lines;
}

}  // namespace troupe
