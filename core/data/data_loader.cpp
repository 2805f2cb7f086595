#include <troupe/data/data_loader.hpp>
#include <troupe/data/sampler.hpp>
#include <troupe/errors.hpp>

#include <ATen/ops/stack.h>

#include <random>

#include "prefetcher.hpp"

namespace troupe {

Batch default_collate(std::vector<TensorDict> samples) {
  Batch batch;
  if (samples.empty()) return batch;
  std::vector<at::Tensor> column(samples.size());
  for (const auto& [name, first] : samples.front()) {
    for (std::size_t i = 0; i < samples.size(); ++i) {
      column[i] = samples[i][name];
      if (column[i].sizes() != first.sizes()) {
        throw Failure{Errc::DataMalformed, "default_collate: tensor '" + name + "' has another shape in sample " + std::to_string(i) +
                                               " of the batch than in the first; give the DataLoader a collate that pads"};
      }
    }
    batch.set(name, at::stack(column));
  }
  return batch;
}

struct DataLoader::Impl {
  std::shared_ptr<const MapDataset> dataset;
  DataLoaderOptions options;
  ShardingRule rule;
  std::uint64_t seed = 0;
  std::int64_t epoch = 0;
  std::int64_t skip = 0;
  LoaderState state;

  std::vector<Indices> batches;           // of the running epoch
  std::size_t position = 0;               // next batch to make, without workers
  std::unique_ptr<Prefetcher> prefetcher;
  std::optional<Batch> ahead;             // made, not yet handed out

  Indices order() const {
    return options.shuffle ? seedable_random_order(dataset->size(), seed, epoch) : sequential_order(dataset->size());
  }

  Batch make(std::size_t number) const {
    std::vector<TensorDict> samples;
    samples.reserve(batches[number].size());
    for (const auto index : batches[number]) {
      try {
        samples.push_back(dataset->get(index));
      } catch (const std::exception& error) {
        throw Failure{Errc::DataMalformed, "sample " + std::to_string(index) + ": " + error.what()};
      }
    }
    return options.collate ? options.collate(std::move(samples)) : default_collate(std::move(samples));
  }

  std::optional<Batch> next() {
    if (prefetcher) return prefetcher->next();
    if (position == batches.size()) return std::nullopt;
    return make(position++);
  }

  void start_epoch() {
    prefetcher.reset();
    batches = shard_batches(order(), rule);
    batches.erase(batches.begin(), batches.begin() + std::min<std::ptrdiff_t>(skip, std::ssize(batches)));
    skip = 0;
    position = 0;
    state = {.end_of_dataloader = false, .remainder = remainder_at_end(dataset->size(), rule)};
    if (options.num_workers > 0 && !batches.empty()) {
      const auto far = static_cast<std::size_t>(options.num_workers) * static_cast<std::size_t>(options.prefetch_factor);
      prefetcher = std::make_unique<Prefetcher>(batches.size(), options.num_workers, far, [this](std::size_t n) { return make(n); });
    }
    ahead = next();
  }

  /// Hands out one batch and looks one ahead, so that the last one is known while it is processed.
  std::optional<Batch> advance() {
    auto current = std::move(ahead);
    ahead.reset();
    if (!current) {
      prefetcher.reset();
      ++epoch;
      return std::nullopt;
    }
    ahead = next();
    state.end_of_dataloader = !ahead;
    return current;
  }
};

namespace {

void check(const DataLoaderOptions& options) {
  if (options.num_workers < 0) {
    throw Failure{Errc::InvalidArgument, "DataLoader: num_workers is " + std::to_string(options.num_workers) + "; it must not be negative"};
  }
  if (options.prefetch_factor < 1) {
    throw Failure{Errc::InvalidArgument, "DataLoader: prefetch_factor is " + std::to_string(options.prefetch_factor) + "; it must be at least 1"};
  }
}

}  // namespace

DataLoader::DataLoader(std::shared_ptr<const MapDataset> dataset, DataLoaderOptions options) : impl_(std::make_unique<Impl>()) {
  if (!dataset) throw Failure{Errc::InvalidArgument, "DataLoader: there is no data set"};
  check(options);
  impl_->dataset = std::move(dataset);
  impl_->rule = {.batch_size = options.batch_size, .drop_last = options.drop_last};
  validate(impl_->rule);
  impl_->seed = options.seed ? *options.seed : std::random_device{}();
  impl_->options = std::move(options);
}

DataLoader::~DataLoader() = default;
DataLoader::DataLoader(DataLoader&&) noexcept = default;
DataLoader& DataLoader::operator=(DataLoader&&) noexcept = default;

DataLoader::Iterator& DataLoader::Iterator::operator++() {
  batch_ = loader_->impl_->advance();
  if (!batch_) loader_ = nullptr;
  return *this;
}

DataLoader::Iterator DataLoader::begin() {
  impl_->start_epoch();
  Iterator first;
  first.loader_ = this;
  return std::move(++first);
}

std::int64_t DataLoader::size() const {
  // The number of batches does not depend on the order.
  return std::ssize(shard_batches(Indices(impl_->dataset->size()), impl_->rule));
}

std::size_t DataLoader::dataset_size() const { return impl_->dataset->size(); }
std::int64_t DataLoader::total_batch_size() const { return impl_->rule.total_batch_size(); }
const LoaderState& DataLoader::state() const noexcept { return impl_->state; }
const DataLoaderOptions& DataLoader::options() const noexcept { return impl_->options; }

void DataLoader::shard(int rank, int world_size, const DataLoaderConfiguration& configuration, std::uint64_t shared_seed) {
  ShardingRule rule = impl_->rule;
  rule.split_batches = configuration.split_batches;
  rule.even_batches = configuration.even_batches;
  rule.rank = rank;
  rule.world_size = world_size;
  validate(rule);
  impl_->rule = rule;
  if (!impl_->options.seed) impl_->seed = configuration.use_seedable_sampler ? configuration.data_seed : shared_seed;
}

void DataLoader::set_epoch(std::int64_t epoch) { impl_->epoch = epoch; }
std::int64_t DataLoader::epoch() const noexcept { return impl_->epoch; }

void DataLoader::skip_first_batches(std::int64_t num_batches) {
  if (num_batches < 0) throw Failure{Errc::InvalidArgument, "skip_first_batches: a negative number of batches"};
  impl_->skip = num_batches;
}

}  // namespace troupe
