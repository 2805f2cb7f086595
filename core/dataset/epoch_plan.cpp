#include "epoch_plan.hpp"

#include <set>

#include "shares.hpp"

namespace troupe::detail {

void check_options(const Plan& plan, const StreamOptions& options) {
  const auto& split = options.split;
  const auto& execution = options.execution;
  if (split.world_size < 1 || split.rank < 0 || split.rank >= split.world_size)
    throw Failure{Errc::InvalidArgument, "rank " + std::to_string(split.rank) + " of " + std::to_string(split.world_size) + " cannot be"};
  if (options.epoch < 0) throw Failure{Errc::InvalidArgument, "epochs are counted from 0, not from " + std::to_string(options.epoch)};
  if (options.num_epochs < -1) throw Failure{Errc::InvalidArgument, "num_epochs is " + std::to_string(options.num_epochs) + "; -1 means without end"};
  if (execution.num_readers < 1) throw Failure{Errc::InvalidArgument, "num_readers must be at least 1"};
  if (execution.block_rows < 1 || execution.block_bytes < 1) throw Failure{Errc::InvalidArgument, "blocks must have at least a row and a byte"};
  if (split.rank_nodes.empty() != split.fragment_nodes.empty() ||
      (!split.rank_nodes.empty() && split.rank_nodes.size() != static_cast<std::size_t>(split.world_size)))
    throw Failure{Errc::InvalidArgument, "locality needs both fragment_nodes and a rank_nodes entry for each of " + std::to_string(split.world_size) + " ranks"};
  if (split.world_size > 1 && split.equal != SplitEqual::Uneven && !plan.keeps_rows()) {
    std::string step;
    for (const auto& one : plan.steps)
      if (!one.keeps_rows) step = one.name();
    throw Failure{Errc::Unsupported, "step " + step + " changes the number of rows, so nobody knows how to split them equally before they are made. Call counted() "
                                     "after it (runs the steps once more, to count), or materialize(), or take SplitEqual::Uneven"};
  }
}

std::vector<RowRange> fresh_share(const Plan& plan, const SplitOptions& split, const std::vector<OrderEntry>& order) {
  if (split.world_size == 1) {
    if (order.empty()) return {};
    return {{{0, 0}, {static_cast<std::int64_t>(order.size()), 0}}};
  }
  const auto counts = epoch_counts(plan, order);
  if (split.rank_nodes.empty()) return deal({whole_epoch(counts)}, counts, split.world_size, split.rank, split.equal);
  std::vector<int> nodes;
  for (const auto& entry : order) {
    if (static_cast<std::size_t>(entry.fragment) >= split.fragment_nodes.size())
      throw Failure{Errc::InvalidArgument, "fragment_nodes has " + std::to_string(split.fragment_nodes.size()) + " entries, the source has more fragments"};
    nodes.push_back(split.fragment_nodes[static_cast<std::size_t>(entry.fragment)]);
  }
  return deal(pieces_by_node(counts, nodes, split.rank_nodes), counts, split.world_size, split.rank, split.equal);
}

std::vector<RowRange> epoch_ranges(const Plan& plan, const StreamOptions& options, const std::optional<Resumed>& resumed, std::int64_t epoch,
                                   const std::vector<OrderEntry>& order) {
  if (!resumed || resumed->epoch != epoch) return fresh_share(plan, options.split, order);
  if (resumed->dealt_anew.empty()) return resumed->ranges;
  const auto counts = epoch_counts(plan, order);
  return deal(remaining_pieces(resumed->dealt_anew, counts, plan.keeps_rows()), counts, options.split.world_size, options.split.rank, options.split.equal);
}

EpochPlan plan_epoch(const Plan& plan, const StreamOptions& options, const std::optional<Resumed>& resumed, std::int64_t epoch, std::stop_token stop) {
  resolve_schemas(plan);
  EpochPlan out;
  out.order = epoch_order(plan, static_cast<std::int64_t>(plan.source->fragments().size()), epoch);
  auto ranges = epoch_ranges(plan, options, resumed, epoch, out.order);
  for (const auto& range : ranges)
    if (range.last.fragment > static_cast<std::int64_t>(out.order.size()))
      throw Failure{Errc::InvalidArgument, "the cursor speaks of fragment " + std::to_string(range.last.fragment) + ", the data set has " +
                                               std::to_string(out.order.size())};
  std::map<std::int64_t, std::set<std::int64_t>> needed;
  for (const auto& range : ranges)
    for (std::int64_t i = range.first.fragment; i < range.last.fragment + (range.last.row > 0 ? 1 : 0); ++i) {
      const auto& entry = out.order[static_cast<std::size_t>(i)];
      needed[entry.pass].insert(entry.fragment);
    }
  for (const auto& [pass, fragments] : needed) {
    auto source = at_pass(plan.source, pass);
    if (const auto* prepared = dynamic_cast<const PreparedSource*>(source.get()))
      prepared->prepare(std::vector<std::int64_t>(fragments.begin(), fragments.end()), stop);
    out.passes[pass] = std::move(source);
  }
  out.ranges = std::make_shared<const std::vector<RowRange>>(std::move(ranges));
  return out;
}

}  // namespace troupe::detail
