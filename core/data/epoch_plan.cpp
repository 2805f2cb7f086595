#include "epoch_plan.hpp"

#include <algorithm>
#include <string>
#include <troupe/errors.hpp>
#include <utility>

namespace troupe {
namespace {

std::int64_t rounded_up(std::int64_t count, std::int64_t multiple) { return (count + multiple - 1) / multiple * multiple; }

class FlatPlan final : public EpochPlan {
 public:
  FlatPlan(const BatchSharding& sharding, std::vector<std::int64_t> order, std::int64_t round_to)
      : sharding_(sharding), order_(std::move(order)), round_to_(round_to) {}

  [[nodiscard]] std::int64_t size() const override { return num_batches(sharding_); }
  [[nodiscard]] std::int64_t remainder() const override { return troupe::remainder(sharding_); }
  [[nodiscard]] std::int64_t samples_after(std::int64_t count) const override { return samples_taken(sharding_, count); }
  [[nodiscard]] BatchMeta batch(std::int64_t number) const override {
    const auto range = batch_at(sharding_, number);
    const auto after = samples_after(number + 1);
    BatchMeta meta{number, {}, remainder(), after, {}};
    meta.indices.resize(static_cast<std::size_t>(rounded_up(range.count, round_to_)));
    for (std::size_t i = 0; i < meta.indices.size(); ++i) {
      meta.indices[i] = order_[static_cast<std::size_t>((range.first + static_cast<std::int64_t>(i)) % sharding_.num_samples)];
    }
    return meta;
  }

 private:
  BatchSharding sharding_;
  std::vector<std::int64_t> order_;
  std::int64_t round_to_;
};

class ListPlan final : public EpochPlan {
 public:
  struct Round {
    std::vector<std::int64_t> indices;  // this rank's; none: it has no batch
    std::int64_t after = 0;
    std::int64_t remainder = -1;
  };
  ListPlan(std::vector<Round> rounds, std::int64_t first) : rounds_(std::move(rounds)), first_(first) {}

  [[nodiscard]] std::int64_t size() const override { return std::ssize(rounds_); }
  [[nodiscard]] std::int64_t remainder() const override { return -1; }
  [[nodiscard]] std::int64_t samples_after(std::int64_t count) const override {
    return count <= 0 || rounds_.empty() ? first_ : rounds_[static_cast<std::size_t>(std::min(count, size())) - 1].after;
  }
  [[nodiscard]] BatchMeta batch(std::int64_t number) const override {
    const auto& round = rounds_[static_cast<std::size_t>(number)];
    return {number, round.indices, round.remainder, round.after, {}};
  }

 private:
  std::vector<Round> rounds_;
  std::int64_t first_;
};

/// Without the first `count` samples.
std::vector<std::vector<std::int64_t>> behind(std::vector<std::vector<std::int64_t>> lists, std::int64_t count) {
  std::size_t gone = 0;
  for (; gone < lists.size() && count >= std::ssize(lists[gone]); ++gone) count -= std::ssize(lists[gone]);
  lists.erase(lists.begin(), lists.begin() + static_cast<std::ptrdiff_t>(gone));
  if (count > 0 && !lists.empty()) lists.front().erase(lists.front().begin(), lists.front().begin() + count);
  if (count > 0 && lists.empty())
    throw Failure{Errc::InvalidArgument, "DataLoader: the epoch of the batch_sampler ends " + std::to_string(count) + " samples before the position"};
  return lists;
}

}  // namespace

std::shared_ptr<const EpochPlan> flat_plan(const BatchSharding& sharding, std::vector<std::int64_t> order, std::int64_t round_to) {
  return std::make_shared<FlatPlan>(sharding, std::move(order), round_to);
}

std::shared_ptr<const EpochPlan> list_plan(const BatchSharding& s, std::vector<std::vector<std::int64_t>> lists, std::int64_t joined,
                                           std::int64_t round_to) {
  std::vector<std::int64_t> start;  // of the epoch: what fills up
  for (const auto& list : lists) {
    if (list.empty()) throw Failure{Errc::InvalidArgument, "DataLoader: the batch_sampler gave a batch without samples"};
    if (std::ssize(start) < round_to) start.insert(start.end(), list.begin(), list.end());
  }
  lists = behind(std::move(lists), s.first);
  const auto per_round = static_cast<std::size_t>(joined * s.world_size);
  std::vector<ListPlan::Round> rounds;
  auto after = s.first;
  for (std::size_t i = 0; i < lists.size(); i += per_round) {
    const auto end = std::min(i + per_round, lists.size());
    if (end < i + per_round && s.drop_last) break;
    ListPlan::Round round;
    for (auto l = i; l < end; ++l) {
      after += std::ssize(lists[l]);
      if (joined > 1 || l == i + static_cast<std::size_t>(s.rank)) round.indices.insert(round.indices.end(), lists[l].begin(), lists[l].end());
    }
    round.after = after;
    if (round.indices.empty()) break;  // the last round, of fewer batches than ranks
    const auto missing = rounded_up(std::ssize(round.indices), round_to) - std::ssize(round.indices);
    if (missing > 0 && end < lists.size()) {
      throw Failure{Errc::InvalidArgument, "DataLoader: with dispatch_batches, the " + std::to_string(round.indices.size()) +
                                               " samples of the batch_sampler's batches " + std::to_string(i) + " to " + std::to_string(end - 1) +
                                               " cannot be divided evenly among " + std::to_string(round_to) + " ranks"};
    }
    if (missing > 0) round.remainder = std::ssize(round.indices);
    for (std::int64_t m = 0; m < missing; ++m) round.indices.push_back(start[static_cast<std::size_t>(m) % start.size()]);
    rounds.push_back(std::move(round));
  }
  return std::make_shared<ListPlan>(std::move(rounds), s.first);
}

std::vector<std::int64_t> flattened(const std::vector<std::vector<std::int64_t>>& lists, std::int64_t batch_size) {
  std::vector<std::int64_t> order;
  for (std::size_t l = 0; l < lists.size(); ++l) {
    const auto length = std::ssize(lists[l]);
    if (length == 0 || length > batch_size || (length < batch_size && l + 1 < lists.size())) {
      throw Failure{Errc::InvalidArgument, "DataLoader: batch " + std::to_string(l) + " of the batch_sampler has " + std::to_string(length) +
                                               " samples, but its batch_size() is " + std::to_string(batch_size) +
                                               "; return nothing there when batches differ in length"};
    }
    order.insert(order.end(), lists[l].begin(), lists[l].end());
  }
  return order;
}

std::optional<BatchJob> PlannedJobs::next() {
  while (ahead_.contains(next_)) ++next_;
  if (next_ >= plan_->size()) return std::nullopt;
  return BatchJob{plan_->batch(next_++), {}};
}

}  // namespace troupe
