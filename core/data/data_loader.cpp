#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <string>
#include <troupe/black_box.hpp>
#include <troupe/data/data_loader.hpp>
#include <troupe/data/samplers.hpp>
#include <troupe/data/sharding.hpp>
#include <troupe/errors.hpp>
#include <utility>

#include "batch_loading.hpp"
#include "prefetcher.hpp"

namespace troupe {
namespace {

constexpr int kMaxWorkers = 1024;

[[noreturn]] void fail(const std::string& text) {
  throw Failure{Errc::InvalidArgument, "DataLoader: " + text};
}

void check(const DataLoaderOptions& o) {
  if (o.num_workers < 0 || o.num_workers > kMaxWorkers) {
    fail("num_workers = " + std::to_string(o.num_workers) + "; it must be from 0 to " +
         std::to_string(kMaxWorkers));
  }
  if (o.prefetch_factor < 1)
    fail("prefetch_factor = " + std::to_string(o.prefetch_factor) + "; it must be at least 1");
}

/// Where a loader and the latest epoch it began stand. An epoch may outlive its loader, so they
/// share it.
struct Shared {
  LoaderState state;
  LoaderPosition next;  // where the next epoch starts
  std::optional<LoaderPosition>
      position;                   // of the latest epoch; nothing once another start was set
  const void* current = nullptr;  // the latest epoch, while it lives
  std::vector<std::int64_t> batch;  // indices of its last batch
  DataLoader::Asked asked;
};

/// Everything needed to load any batch of one epoch on one rank, from any thread.
struct EpochContent {
  std::shared_ptr<const MapDataset> dataset;
  Collate collate;
  BatchSharding sharding;
  std::vector<std::int64_t> order;

  [[nodiscard]] std::vector<std::int64_t> indices_of(std::int64_t number) const {
    const auto range = batch_at(sharding, number);
    std::vector<std::int64_t> indices(static_cast<std::size_t>(range.count));
    for (std::int64_t i = 0; i < range.count; ++i) {
      indices[static_cast<std::size_t>(i)] =
          order[static_cast<std::size_t>((range.first + i) % sharding.num_samples)];
    }
    return indices;
  }
  [[nodiscard]] Batch load(std::int64_t number) const {
    return load_batch(*dataset, collate, indices_of(number));
  }
};

}  // namespace

/// One pass over a rank's batches.
class DataLoader::Iterator::Epoch {
 public:
  Epoch(EpochContent content, LoaderPosition start, const DataLoaderOptions& options,
        std::shared_ptr<Shared> shared)
      : content_(std::move(content)),
        position_(start),
        size_(num_batches(content_.sharding)),
        shared_(std::move(shared)) {
    position_.num_batches = std::min(position_.num_batches, size_);
    if (options.num_workers > 0) {
      const auto window = std::int64_t{options.num_workers} * options.prefetch_factor;
      prefetcher_ = std::make_unique<Prefetcher>(
          options.num_workers, window, position_.num_batches, size_,
          [this](std::int64_t number) { return content_.load(number); });
    }
    shared_->current = this;
    shared_->state = {false, remainder(content_.sharding)};
    shared_->position = position_;
    shared_->next = {position_.epoch, 0, 0};  // batches are skipped once
  }

  ~Epoch() {
    if (shared_->current != this) return;
    shared_->current = nullptr;
    shared_->batch.clear();
    shared_->state = {};
  }

  Epoch(const Epoch&) = delete;
  Epoch& operator=(const Epoch&) = delete;

  [[nodiscard]] std::optional<Batch> next() {
    if (const auto asked = shared_->asked) asked(position_.num_batches < size_);
    if (position_.num_batches >= size_) {
      finish();
      return std::nullopt;
    }
    mark_phase(StepPhase::Data);
    auto batch = prefetcher_ ? prefetcher_->next() : content_.load(position_.num_batches);
    mark_phase(StepPhase::Forward);
    if (shared_->current == this) shared_->batch = content_.indices_of(position_.num_batches);
    ++position_.num_batches;
    if (shared_->current == this) {
      if (shared_->position) shared_->position = position_;
      shared_->state.end_of_dataloader = position_.num_batches == size_;
    }
    return batch;
  }

 private:
  /// An epoch counts when its end is reached, unless the user has set another start meanwhile.
  void finish() {
    if (shared_->current != this || !shared_->position) return;
    shared_->position.reset();
    shared_->next = {position_.epoch + 1, 0, 0};
  }

  const EpochContent content_;
  LoaderPosition position_;
  const std::int64_t size_;
  std::shared_ptr<Shared> shared_;
  std::unique_ptr<Prefetcher> prefetcher_;  // last: its threads read content_
};

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

struct DataLoader::Impl {
  std::shared_ptr<const MapDataset> dataset;
  DataLoaderOptions options;
  BatchSharding sharding;
  std::unique_ptr<Sampler>
      sampler;  // null: to be made with the first epoch, from torch's default generator
  std::shared_ptr<Shared> shared = std::make_shared<Shared>();

  [[nodiscard]] Sampler& ready_sampler() {
    if (!sampler) {
      const auto drawn =
          at::empty({}, at::TensorOptions().dtype(at::kLong)).random_().item<std::int64_t>();
      sampler = std::make_unique<RandomSampler>(dataset->size(), static_cast<std::uint64_t>(drawn));
    }
    return *sampler;
  }
};

DataLoader::DataLoader(std::shared_ptr<const MapDataset> dataset, DataLoaderOptions options)
    : impl_(std::make_unique<Impl>()) {
  if (!dataset) fail("there is no data set (a null pointer)");
  check(options);
  auto& i = *impl_;
  i.dataset = std::move(dataset);
  i.options = std::move(options);
  if (!i.options.collate) i.options.collate = default_collate;
  i.sharding.num_samples = static_cast<std::int64_t>(i.dataset->size());
  i.sharding.batch_size = i.options.batch_size.value_or(1);
  i.sharding.drop_last = i.options.drop_last;
  validate(i.sharding);
  if (!i.options.shuffle) {
    i.sampler = std::make_unique<SequentialSampler>(i.dataset->size());
  } else if (i.options.seed || i.dataset->size() == 0) {
    i.sampler = std::make_unique<RandomSampler>(i.dataset->size(), i.options.seed.value_or(0));
  }
}

DataLoader::~DataLoader() = default;
DataLoader::DataLoader(DataLoader&&) noexcept = default;
DataLoader& DataLoader::operator=(DataLoader&&) noexcept = default;

DataLoader::Iterator DataLoader::begin() {
  auto& i = *impl_;
  const auto start = i.shared->next;
  auto sharding = i.sharding;
  sharding.first = start.first_sample;
  EpochContent content{i.dataset, i.options.collate, sharding,
                       i.ready_sampler().order(start.epoch)};
  return Iterator{
      std::make_unique<Iterator::Epoch>(std::move(content), start, i.options, i.shared)};
}

void DataLoader::shard(int rank, int world_size, const DataLoaderConfiguration& configuration,
                       std::uint64_t shared_seed, BroadcastBytes) {
  auto& i = *impl_;
  auto sharding = i.sharding;
  sharding.rank = rank;
  sharding.world_size = world_size;
  sharding.split_batches = configuration.split_batches;
  sharding.even_batches = configuration.even_batches;
  validate(sharding);
  i.sharding = sharding;
  if (!i.options.shuffle) return;
  if (configuration.use_seedable_sampler) {
    i.sampler = std::make_unique<SeedableRandomSampler>(i.dataset->size(), configuration.data_seed);
  } else {
    i.sampler =
        std::make_unique<RandomSampler>(i.dataset->size(), i.options.seed.value_or(shared_seed));
  }
}

std::int64_t DataLoader::size() const { return num_batches(impl_->sharding); }
std::size_t DataLoader::dataset_size() const {
  return static_cast<std::size_t>(impl_->sharding.num_samples);
}
std::int64_t DataLoader::total_batch_size() const {
  return troupe::total_batch_size(impl_->sharding);
}
const LoaderState& DataLoader::state() const noexcept { return impl_->shared->state; }
const DataLoaderOptions& DataLoader::options() const noexcept { return impl_->options; }
void DataLoader::set_asked(Asked asked) { impl_->shared->asked = std::move(asked); }
const std::vector<std::int64_t>& DataLoader::batch_indices() const noexcept {
  return impl_->shared->batch;
}
std::int64_t DataLoader::epoch() const noexcept { return position().epoch; }

void DataLoader::set_epoch(std::int64_t epoch) {
  resume({epoch, impl_->shared->next.num_batches, impl_->shared->next.first_sample});
}

void DataLoader::skip_first_batches(std::int64_t num_batches) {
  resume({impl_->shared->next.epoch, num_batches, 0});
}

LoaderPosition DataLoader::position() const {
  return impl_->shared->position.value_or(impl_->shared->next);
}

void DataLoader::resume(const LoaderPosition& position) {
  if (position.epoch < 0)
    fail("epoch = " + std::to_string(position.epoch) + "; it must be at least 0");
  if (position.num_batches < 0)
    fail("cannot skip " + std::to_string(position.num_batches) + " batches");
  auto sharding = impl_->sharding;
  sharding.first = position.first_sample;
  validate(sharding);
  impl_->shared->next = position;
  impl_->shared->position.reset();
}

std::int64_t DataLoader::samples_consumed() const {
  const auto at = position();
  auto sharding = impl_->sharding;
  sharding.first = at.first_sample;
  return samples_taken(sharding, at.num_batches);
}

void DataLoader::resume_after(std::int64_t epoch, std::int64_t samples_consumed) {
  const auto total = troupe::total_batch_size(impl_->sharding);
  // Said in whole batches where it can be: `position` then counts from the epoch's beginning.
  if (samples_consumed >= 0 && samples_consumed % total == 0)
    resume({epoch, samples_consumed / total, 0});
  else
    resume({epoch, 0, samples_consumed});
}

}  // namespace troupe
