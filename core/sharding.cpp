#include <troupe/data/sharding.hpp>
#include <troupe/errors.hpp>

#include <algorithm>
#include <string>

namespace troupe {

namespace {

std::size_t round_up(std::size_t value, std::size_t multiple) { return (value + multiple - 1) / multiple * multiple; }

/// `order` made longer by its own first `cycle` samples, again and again.
Indices filled_up(const Indices& order, std::size_t length, std::size_t cycle) {
  Indices filled = order;
  filled.reserve(length);
  for (std::size_t i = 0; filled.size() < length; ++i) filled.push_back(order[i % cycle]);
  return filled;
}

Indices slice(const Indices& order, std::size_t begin, std::size_t end) {
  begin = std::min(begin, order.size());
  end = std::min(end, order.size());
  return {order.begin() + static_cast<std::ptrdiff_t>(begin), order.begin() + static_cast<std::ptrdiff_t>(end)};
}

}  // namespace

void validate(const ShardingRule& rule) {
  if (rule.batch_size < 1) {
    throw Failure{Errc::InvalidArgument, "DataLoader: batch_size is " + std::to_string(rule.batch_size) + "; it must be at least 1"};
  }
  if (rule.world_size < 1 || rule.rank < 0 || rule.rank >= rule.world_size) {
    throw Failure{Errc::InvalidArgument, "DataLoader: rank " + std::to_string(rule.rank) + " does not fit " + std::to_string(rule.world_size) + " ranks"};
  }
  if (rule.split_batches && rule.batch_size % rule.world_size != 0) {
    throw Failure{Errc::InvalidArgument, "DataLoader: split_batches cannot cut batch_size " + std::to_string(rule.batch_size) + " into " +
                                             std::to_string(rule.world_size) + " equal parts; choose a multiple of the number of ranks"};
  }
}

std::vector<Indices> shard_batches(const Indices& order, const ShardingRule& rule) {
  validate(rule);
  const auto ranks = static_cast<std::size_t>(rule.world_size);
  const auto rank = static_cast<std::size_t>(rule.rank);
  const auto step = static_cast<std::size_t>(rule.total_batch_size());  // samples of all ranks
  const auto own = step / ranks;                                         // samples of one rank
  const bool even = rule.even_batches && ranks > 1;

  Indices dealt = order;
  if (rule.drop_last) {
    dealt.resize(order.size() / step * step);
  } else if (even && !order.empty()) {
    dealt = filled_up(order, round_up(order.size(), step), std::min(order.size(), step));
  }
  std::vector<Indices> batches;
  for (std::size_t begin = 0; begin < dealt.size(); begin += step) {
    auto batch = slice(dealt, begin + rank * own, begin + (rank + 1) * own);
    if (!batch.empty()) batches.push_back(std::move(batch));
  }
  return batches;
}

std::int64_t remainder_at_end(std::size_t num_samples, const ShardingRule& rule) {
  return rule.drop_last ? -1 : static_cast<std::int64_t>(num_samples) % rule.total_batch_size();
}

Indices distributed_samples(const Indices& order, int rank, int world_size, bool drop_last) {
  const auto ranks = static_cast<std::size_t>(world_size);
  if (order.empty()) return {};
  const auto length = drop_last ? order.size() / ranks * ranks : round_up(order.size(), ranks);
  const auto even = length > order.size() ? filled_up(order, length, order.size()) : slice(order, 0, length);
  Indices own;
  for (auto i = static_cast<std::size_t>(rank); i < even.size(); i += ranks) own.push_back(even[i]);
  return own;
}

}  // namespace troupe
