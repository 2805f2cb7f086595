#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <string>
#include <troupe/data/data_loader.hpp>
#include <troupe/data/samplers.hpp>
#include <troupe/data/sharding.hpp>
#include <troupe/errors.hpp>
#include <utility>

#include "loader_impl.hpp"

namespace troupe {

DataLoader::Iterator::Iterator() = default;
DataLoader::Iterator::~Iterator() = default;
DataLoader::Iterator::Iterator(Iterator&&) noexcept = default;
DataLoader::Iterator& DataLoader::Iterator::operator=(Iterator&&) noexcept = default;

DataLoader::Iterator::Iterator(std::unique_ptr<Epoch> epoch) : epoch_(std::move(epoch)) { ++*this; }

DataLoader::Iterator& DataLoader::Iterator::operator++() {
  batch_.reset();  // before the next is loaded: one batch of memory, not two
  batch_ = epoch_->next();
  if (!batch_) epoch_.reset();
  return *this;
}

DataLoader::DataLoader(std::shared_ptr<const MapDataset> dataset, DataLoaderOptions options)
    : impl_(std::make_unique<Impl>(std::move(dataset), nullptr, std::move(options))) {}
DataLoader::DataLoader(std::shared_ptr<const IterableDataset> dataset, DataLoaderOptions options)
    : impl_(std::make_unique<Impl>(nullptr, std::move(dataset), std::move(options))) {}
DataLoader::~DataLoader() = default;
DataLoader::DataLoader(DataLoader&&) noexcept = default;
DataLoader& DataLoader::operator=(DataLoader&&) noexcept = default;

DataLoader::Iterator DataLoader::begin() {
  auto& i = *impl_;
  const auto begun = std::chrono::steady_clock::now();
  const auto start = i.shared->next;
  auto made = i.epoch(start);
  return Iterator{std::make_unique<Iterator::Epoch>(std::move(made.pipe), std::move(made.facts), start, i.shared, begun)};
}

void DataLoader::shard(int rank, int world_size, const DataLoaderConfiguration& configuration, std::uint64_t shared_seed, BroadcastBytes broadcast) {
  impl_->shard(rank, world_size, configuration, shared_seed, std::move(broadcast));
}

std::int64_t DataLoader::size() const { return impl_->size(); }
std::size_t DataLoader::dataset_size() const {
  if (impl_->map) return impl_->map->size();
  if (const auto size = impl_->iterable->size()) return static_cast<std::size_t>(*size);
  throw Failure{Errc::Unsupported, "DataLoader: the iterable data set does not say its size"};
}
std::optional<std::int64_t> DataLoader::num_samples() const { return impl_->num_samples(); }
std::int64_t DataLoader::total_batch_size() const { return troupe::total_batch_size(impl_->sharding); }
const LoaderState& DataLoader::state() const noexcept { return impl_->shared->state; }
const LoaderStats& DataLoader::stats() const noexcept { return impl_->shared->stats; }
const DataLoaderOptions& DataLoader::options() const noexcept { return impl_->options; }
void DataLoader::set_asked(Asked asked) { impl_->shared->asked = std::move(asked); }
void DataLoader::set_transfer(Transfer transfer) { impl_->shared->transfer = std::move(transfer); }
const std::vector<std::int64_t>& DataLoader::batch_indices() const noexcept { return impl_->shared->batch; }
std::int64_t DataLoader::epoch() const noexcept {
  const auto& s = *impl_->shared;
  return s.position ? s.position->epoch : s.next.epoch;
}

void DataLoader::set_epoch(std::int64_t epoch) {
  const auto& next = impl_->shared->next;
  resume({epoch, next.num_batches, next.first_sample});
}

void DataLoader::skip_first_batches(std::int64_t num_batches) { resume({impl_->shared->next.epoch, num_batches}); }

LoaderPosition DataLoader::position() const { return impl_->shared->position.value_or(impl_->shared->next); }

void DataLoader::resume(const LoaderPosition& position) {
  impl_->check(position);
  impl_->shared->next = position;
  impl_->shared->position.reset();
}

std::int64_t DataLoader::samples_consumed() const {
  const auto& s = *impl_->shared;
  return s.position ? s.consumed : impl_->samples_after(s.next, s.next.num_batches);
}

void DataLoader::resume_after(std::int64_t epoch, std::int64_t samples_consumed) {
  const auto total = troupe::total_batch_size(impl_->sharding);
  // Said in whole batches where it can be: `position` then counts from the epoch's beginning.
  if (samples_consumed >= 0 && samples_consumed % total == 0 && !impl_->has_lists())
    resume({epoch, samples_consumed / total, 0});
  else
    resume({epoch, 0, samples_consumed});
}

bool DataLoader::has_own_position() const noexcept { return impl_->own_stream || (!impl_->options.in_order && impl_->options.num_workers > 1); }

}  // namespace troupe
