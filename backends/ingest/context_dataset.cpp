// TrainContext::dataset: apart from the rest, so that only programs that call it link Arrow.
#include "iterator_state.hpp"

#include <troupe/communicator.hpp>
#include <troupe/errors.hpp>
#include <troupe/rank_datasets.hpp>

#include <algorithm>

namespace troupe {

namespace {

/// A data set as it is kept over attempts, with what it read of the configuration: reading counts again when it is not made again.
struct KeptDataset {
  Dataset rows;
  std::vector<std::string> keys_read;
};

Dataset make_dataset(TrainContext& context, const RankDatasets& datasets, const std::string& name) {
  const auto& make = datasets.function(name);
  const auto& config = datasets.config();
  const auto kept = context.keep<KeptDataset>("troupe.dataset." + name, [&] {
    auto unread = config.unused();
    auto rows = make(config);
    for (const auto& key : config.unused()) std::erase(unread, key);
    return std::make_shared<KeptDataset>(KeptDataset{std::move(rows), std::move(unread)});
  });
  for (const auto& key : kept->keys_read) (void)config.get_or<nlohmann::ordered_json>(key, {});
  return kept->rows;
}

/// Every rank's node. Collective.
std::vector<int> nodes_of_ranks(TrainContext& context) {
  std::vector<std::int64_t> nodes(static_cast<std::size_t>(context.world_size()));
  const std::int64_t mine = context.node_rank();
  context.communicator().all_gather({const_cast<std::int64_t*>(&mine), sizeof mine, DType::I64}, {nodes.data(), nodes.size() * sizeof mine, DType::I64}).wait().or_throw();
  return {nodes.begin(), nodes.end()};
}

}  // namespace

DataIterator TrainContext::dataset(const std::string& name) {
  auto* known = datasets();
  if (!known) throw Failure{Errc::Unsupported, "dataset(\"" + name + "\"): this context has no data sets"};
  if (const auto opened = known->find(name)) return DataIterator{std::static_pointer_cast<DataIterator::Batches::Shared>(opened)};
  auto rows = make_dataset(*this, *known, name);
  const auto& data = known->data_config();
  const auto& options = data.options_of(name);
  DataIterator::Setup setup{.name = name, .split = {}, .execution = {}, .runtime = &device_runtime(), .waited = [this](auto time) { waited_for_data(time); }};
  if (data.splits(name)) setup.split = {.rank = world_rank(), .world_size = world_size(), .equal = options.equal, .fragment_nodes = {}, .rank_nodes = {}};
  if (setup.split.world_size > 1 && options.enable_shard_locality && !options.fragment_nodes.empty()) {
    setup.split.fragment_nodes = options.fragment_nodes;
    setup.split.rank_nodes = nodes_of_ranks(*this);
  }
  if (options.memory_bytes > 0) setup.execution.memory_budget_bytes = options.memory_bytes;
  if (options.num_threads > 0) setup.execution.num_readers = options.num_threads;
  setup.execution.stall_deadline = options.stall_deadline;
  setup.execution.bad_rows = options.bad_rows;
  setup.execution.on_warning = [name, rank = world_rank()](const std::string& text) {
    std::fprintf(stderr, "rank %d: data set '%s': %s\n", rank, name.c_str(), text.c_str());
  };
  DataIterator iterator{std::move(rows), std::move(setup)};
  // An Accelerator does more when the loop asks for a batch; without one a batch handed out before is a step done.
  iterator.training_stream()->set_asked([this, out = std::make_shared<bool>(false)](bool more) {
    if (std::exchange(*out, more)) step_completed();
  });
  known->add(name, iterator.training_stream());
  return iterator;
}

}  // namespace troupe
