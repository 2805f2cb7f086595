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

std::optional<CompleteCheckpoint> CheckpointAssembly::add(int rank, std::uint64_t index, const Metrics& metrics,
                                                          const std::string& directory, int num_writers) {
  auto [found, fresh] = pending_.try_emplace(index);
  auto& [checkpoint, expected] = found->second;
  const auto what = "checkpoint of report " + std::to_string(index) + ": ";
  if (fresh) {
    checkpoint.index = index;
    expected = num_writers;
  } else if (expected != num_writers) {
    throw Failure{Errc::InvalidArgument, what + "rank " + std::to_string(rank) + " says num_writers " +
                                             std::to_string(num_writers) + ", others " + std::to_string(expected)};
  }
  if (checkpoint.directories.empty() || rank < checkpoint.directories.begin()->first) checkpoint.metrics = metrics;
  if (!checkpoint.directories.emplace(rank, directory).second) {
    throw Failure{Errc::InvalidArgument, what + "rank " + std::to_string(rank) + " reported it twice"};
  }
  if (static_cast<int>(checkpoint.directories.size()) < expected) return std::nullopt;
  auto complete = std::move(checkpoint);
  pending_.erase(found);
  return complete;
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
