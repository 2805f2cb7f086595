#include <troupe/errors.hpp>
#include <troupe/memory_estimate.hpp>

#include <algorithm>

namespace troupe {

namespace {

/// "8Ψ", "8Ψ/N", "4Ψ + 12Ψ/N".
std::string formula_of(std::int64_t whole, std::int64_t shared) {
  std::string text;
  if (whole > 0) text = std::to_string(whole) + "Ψ";
  if (shared > 0) text += (text.empty() ? "" : " + ") + std::to_string(shared) + "Ψ/N";
  return text;
}

std::int64_t bytes_of(DType dtype) { return static_cast<std::int64_t>(size_of(dtype)); }

/// Bytes a parameter of one kind of state, held whole or as a share.
struct Kept {
  std::int64_t whole = 0;
  std::int64_t shared = 0;
};

/// What a rank needs beside its resident state: gathered units under ShardParameters, else reduction buckets.
std::int64_t transient(const ModelSize& m, const ShardingOptions& s, std::int64_t ranks, std::int64_t param_bytes) {
  const std::int64_t reduce_bytes = s.reduce_dtype ? bytes_of(*s.reduce_dtype) : 4;
  if (s.strategy != ShardingStrategy::ShardParameters) {
    return ranks == 1 ? 0 : std::min(m.num_params, 2 * s.reduce_bucket_elements) * reduce_bytes;
  }
  if (ranks == 1 && param_bytes == 4) return 0;
  // A unit's gradients and the reduction of them; while layers run, one more unit is gathered.
  const auto reducing = [&](std::int64_t unit) { return unit * (param_bytes + reduce_bytes) + unit * reduce_bytes / ranks; };
  if (!s.reshard_after_forward) return (m.num_params + m.num_frozen) * param_bytes + reducing(std::max(m.largest_unit, m.root_unit));
  const std::int64_t held = (m.root_unit + m.num_persistent) * param_bytes;
  const std::int64_t ahead = s.backward_prefetch ? 2 : 1;
  const auto in_layers = m.largest_unit == 0 ? 0 : ahead * m.largest_unit * param_bytes + reducing(m.largest_unit);
  return held + std::max(in_layers, reducing(m.root_unit));
}

}  // namespace

MemoryEstimate estimate_memory(const ModelSize& m, const ShardingOptions& s, int ranks, const StateTypes& types) {
  if (ranks < 1) throw Failure{Errc::InvalidArgument, "estimate_memory: ranks is " + std::to_string(ranks) + ", not at least 1"};
  const int group = s.shard_group_size == 0 ? ranks : s.shard_group_size;
  if (group < 1 || ranks % group != 0) {
    throw Failure{Errc::InvalidArgument, "estimate_memory: shard_group_size " + std::to_string(group) + " does not divide " +
                                             std::to_string(ranks) + " ranks"};
  }
  const auto strategy = s.strategy;
  const auto at_least = [&](ShardingStrategy level) { return strategy >= level; };
  const bool low = s.param_dtype && size_of(*s.param_dtype) < size_of(types.model_dtype);
  const auto model_bytes = bytes_of(types.model_dtype);
  const auto param_bytes = s.param_dtype ? bytes_of(*s.param_dtype) : model_bytes;

  Kept params, grads, states;
  if (at_least(ShardingStrategy::ShardParameters)) {
    params.shared = model_bytes;
  } else if (low && at_least(ShardingStrategy::ShardOptimizer)) {
    params = {param_bytes, model_bytes};  // what computes, and this rank's share of the masters
  } else {
    params.whole = low ? param_bytes + model_bytes : model_bytes;
  }
  // ShardParameters reduces into its share in the type of that share.
  const auto grad_bytes = at_least(ShardingStrategy::ShardParameters) ? model_bytes : bytes_of(types.grad_dtype);
  (at_least(ShardingStrategy::ShardGradients) ? grads.shared : grads.whole) = grad_bytes;
  (at_least(ShardingStrategy::ShardOptimizer) ? states.shared : states.whole) = 4LL * types.num_states;

  const auto share = [&](std::int64_t count) { return (count + group - 1) / group; };
  const auto sum = [&](const Kept& kept, std::int64_t count) { return kept.whole * count + kept.shared * share(count); };
  MemoryEstimate estimate;
  estimate.params = sum(params, m.num_params) + (at_least(ShardingStrategy::ShardParameters) ? model_bytes * share(m.num_frozen)
                                                                                            : param_bytes * m.num_frozen);
  estimate.grads = sum(grads, m.num_params);
  estimate.optimizer = sum(states, m.num_params);
  estimate.gathered = transient(m, s, group, param_bytes);
  estimate.formula = formula_of(params.whole + grads.whole + states.whole, params.shared + grads.shared + states.shared);
  if (s.offload_optimizer.place != Offload::Place::None) {
    const auto masters = low ? model_bytes * (params.shared > 0 ? share(m.num_params) : m.num_params) : 0;
    estimate.host += estimate.optimizer + (at_least(ShardingStrategy::ShardParameters) ? 0 : masters);
    estimate.params -= at_least(ShardingStrategy::ShardParameters) ? 0 : masters;
    estimate.optimizer = 0;
  }
  const bool masters_move = s.offload_optimizer.place == Offload::Place::Disk && s.offload_params.place != Offload::Place::Disk;
  if (masters_move && low && at_least(ShardingStrategy::ShardParameters)) {  // what is gathered stays, in its own type
    estimate.host += model_bytes * share(m.num_params);
    estimate.params -= (model_bytes - param_bytes) * share(m.num_params);
  }
  if (s.offload_params.place != Offload::Place::None) {
    estimate.host += estimate.params;
    estimate.params = 0;
  }
  return estimate;
}

const char* short_name(ShardingStrategy strategy) noexcept {
  constexpr const char* names[] = {"replicate", "zero1", "zero2", "zero3"};
  return names[static_cast<std::size_t>(strategy)];
}

}  // namespace troupe
