#include <troupe/group_rules.hpp>
#include <troupe/retention.hpp>

#include <algorithm>
#include <cmath>
#include <set>
#include <utility>

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

void CheckpointAssembly::begin(int world_size) {
  pending_.clear();
  given_up_.clear();
  next_.assign(static_cast<std::size_t>(world_size), 0);
}

CheckpointAssembly::Pending& CheckpointAssembly::expect(int rank, std::uint64_t index, int num_writers, Time now) {
  auto [found, fresh] = pending_.try_emplace(index);
  auto& pending = found->second;
  const auto what = "checkpoint of report " + std::to_string(index) + ": ";
  if (fresh) {
    pending.checkpoint.index = index;
    pending.num_writers = num_writers;
    pending.began = now;
    pending.num_passed = static_cast<int>(std::ranges::count_if(next_, [&](auto next) { return next > index; }));
  } else if (pending.num_writers != num_writers) {
    throw Failure{Errc::InvalidArgument, what + "rank " + std::to_string(rank) + " says num_writers " +
                                             std::to_string(num_writers) + ", others " + std::to_string(pending.num_writers)};
  }
  if (pending.has(rank)) {
    throw Failure{Errc::InvalidArgument, what + "rank " + std::to_string(rank) + " reported it twice"};
  }
  return pending;
}

std::set<int> CheckpointAssembly::still_to_come(const Pending& pending) const {
  std::set<int> ranks;
  for (std::size_t rank = 0; rank < next_.size(); ++rank) {
    if (next_[rank] <= pending.checkpoint.index && !pending.has(static_cast<int>(rank))) ranks.insert(static_cast<int>(rank));
  }
  return ranks;
}

void CheckpointAssembly::check_still_possible(const Pending& pending) const {
  if (next_.empty() || static_cast<int>(next_.size()) - pending.num_passed >= pending.num_writers) return;
  std::set<int> passed;
  for (std::size_t rank = 0; rank < next_.size(); ++rank) {
    if (next_[rank] > pending.checkpoint.index && !pending.has(static_cast<int>(rank))) passed.insert(static_cast<int>(rank));
  }
  throw Failure{Errc::InvalidArgument, describe(pending) + ", but " + name_ranks(passed) + " had no checkpoint in report " + std::to_string(pending.checkpoint.index) +
                                           "; ranks that write a checkpoint together must have called report() equally often before"};
}

void CheckpointAssembly::advance(int rank, std::uint64_t end) {
  if (next_.empty()) return;  // nobody said which ranks there are
  auto& next = next_.at(static_cast<std::size_t>(rank));
  const auto begin = std::exchange(next, std::max(next, end));
  for (auto at = pending_.lower_bound(begin); at != pending_.end() && at->first < end; ++at) {
    if (at->second.has(rank)) continue;
    ++at->second.num_passed;
    check_still_possible(at->second);
  }
}

void CheckpointAssembly::pass(int rank, std::uint64_t index) { advance(rank, index + 1); }

std::optional<CompleteCheckpoint> CheckpointAssembly::add(int rank, std::uint64_t index, const Metrics& metrics,
                                                          const std::string& directory, int num_writers, Time now) {
  if (given_up_.contains(index)) {
    advance(rank, index + 1);
    return std::nullopt;
  }
  auto& pending = expect(rank, index, num_writers, now);
  auto& checkpoint = pending.checkpoint;
  if (checkpoint.directories.empty() || rank < checkpoint.directories.begin()->first) checkpoint.metrics = metrics;
  checkpoint.directories.emplace(rank, directory);
  advance(rank, index + 1);
  check_still_possible(pending);
  if (static_cast<int>(checkpoint.directories.size()) < pending.num_writers) return std::nullopt;
  auto complete = std::move(checkpoint);
  pending_.erase(index);
  return complete;
}

void CheckpointAssembly::announce(int rank, std::uint64_t index, const Metrics& metrics, const std::string& directory, int num_writers, Time now) {
  if (given_up_.contains(index)) return advance(rank, index + 1);
  auto& pending = expect(rank, index, num_writers, now);
  pending.announced.emplace(rank, Announced{metrics, directory});
  advance(rank, index + 1);
  check_still_possible(pending);
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
  auto& checkpoint = pending.mapped().checkpoint;
  for (const auto& [rank, part] : pending.mapped().announced) checkpoint.directories.emplace(rank, part.directory);
  return std::move(checkpoint);
}

std::vector<std::string> CheckpointAssembly::incomplete() const {
  std::vector<std::string> lines;
  for (const auto& [index, pending] : pending_) lines.push_back(describe(pending));
  return lines;
}

std::string CheckpointAssembly::describe(const Pending& pending) const {
  std::set<int> came;
  for (const auto& [rank, directory] : pending.checkpoint.directories) came.insert(rank);
  for (const auto& [rank, part] : pending.announced) came.insert(rank);
  return "checkpoint of report " + std::to_string(pending.checkpoint.index) + ": " + std::to_string(came.size()) + " of " +
         std::to_string(pending.num_writers) + " writers came (" + name_ranks(came) + ")";
}

std::optional<CheckpointAssembly::Time> CheckpointAssembly::oldest_incomplete() const {
  std::optional<Time> oldest;
  for (const auto& [index, pending] : pending_) {
    if (pending.num_came() < pending.num_writers && (!oldest || pending.began < *oldest)) oldest = pending.began;
  }
  return oldest;
}

std::string CheckpointAssembly::overdue(Time time) const {
  for (const auto& [index, pending] : pending_) {
    if (pending.num_came() >= pending.num_writers || pending.began > time) continue;
    const auto missing = still_to_come(pending);
    return describe(pending) + "; " + name_ranks(missing) + (missing.size() == 1 ? " has" : " have") + " not sent report " + std::to_string(index);
  }
  return {};
}

}  // namespace troupe
