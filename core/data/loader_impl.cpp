#include "loader_impl.hpp"

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <limits>
#include <string>
#include <troupe/errors.hpp>
#include <utility>

#include "batch_loading.hpp"
#include "dispatch.hpp"
#include "prefetcher.hpp"
#include "stream_reader.hpp"

namespace troupe {
namespace {

constexpr int kMaxWorkers = 1024;
constexpr std::int64_t kUnknown = std::numeric_limits<std::int64_t>::max() / 4;  // samples of a stream

[[noreturn]] void fail(const std::string& text) { throw Failure{Errc::InvalidArgument, "DataLoader: " + text}; }

}  // namespace

void check_options(const DataLoaderOptions& o, bool has_map) {
  if (o.num_workers < 0 || o.num_workers > kMaxWorkers)
    fail("num_workers = " + std::to_string(o.num_workers) + "; it must be from 0 to " + std::to_string(kMaxWorkers));
  if (o.prefetch_factor < 1) fail("prefetch_factor = " + std::to_string(o.prefetch_factor) + "; it must be at least 1");
  if (o.timeout.count() < 0) fail("timeout = " + std::to_string(o.timeout.count()) + " ms; it must not be negative");
  if (o.timeout.count() > 0 && o.num_workers == 0) fail("timeout is of the wait for a worker; set num_workers");
  if (o.worker_processes && o.num_workers == 0) fail("worker_processes says how workers load; set num_workers");
  if (o.worker_processes && o.collate) fail("with worker_processes the factory '" + o.worker_processes->factory + "' gives the collate; leave the option alone");
  if (o.sampler && o.shuffle) fail("a sampler says the order; leave shuffle alone");
  if (o.batch_sampler && (o.batch_size != std::optional<std::int64_t>{1} || o.shuffle || o.sampler || o.drop_last))
    fail("a batch_sampler makes the batches; leave batch_size, shuffle, sampler and drop_last alone");
  if (!o.batch_size && o.drop_last) fail("without a batch_size no batch is incomplete; leave drop_last alone");
  if (has_map) return;
  if (o.shuffle) fail("an iterable data set has an order of its own; leave shuffle alone");
  if (o.sampler || o.batch_sampler) fail("an iterable data set has no indices; leave sampler and batch_sampler alone");
}

DataLoader::Impl::Impl(std::shared_ptr<const MapDataset> m, std::shared_ptr<const IterableDataset> s, DataLoaderOptions o)
    : map(std::move(m)), iterable(std::move(s)), options(std::move(o)) {
  if (!map && !iterable) fail("there is no data set (a null pointer)");
  check_options(options, map != nullptr);
  sharding.batch_size = options.batch_size.value_or(1);
  sharding.drop_last = options.drop_last;
  if (const auto& batches = options.batch_sampler) {
    sharding.batch_size = batches->batch_size().value_or(1);
    sharding.drop_last = batches->drop_last();
  }
  sharding.num_samples = map ? static_cast<std::int64_t>(options.sampler ? options.sampler->size() : map->size()) : kUnknown;
  if (options.batch_sampler) sharding.num_samples = kUnknown;
  validate(sharding);
  if (!map) return;
  if (!options.shuffle) made_sampler = std::make_unique<SequentialSampler>(map->size());
  else if (options.seed || map->size() == 0) use_seed(options.seed.value_or(0));
}

void DataLoader::Impl::use_seed(std::uint64_t value) {
  seed = value;
  made_sampler = std::make_unique<RandomSampler>(map->size(), value);
}

void DataLoader::Impl::shard(int rank, int world_size, const DataLoaderConfiguration& c, std::uint64_t shared_seed, BroadcastBytes given) {
  auto s = sharding;
  s.rank = rank;
  s.world_size = world_size;
  s.split_batches = c.split_batches;
  s.even_batches = c.even_batches;
  if (has_lists() && world_size > 1) {
    if (c.split_batches) fail("split_batches needs a batch_sampler with a batch_size()");
    if (c.even_batches && !c.dispatch_batches.value_or(false))
      fail("batches of a batch_sampler without batch_size() cannot be evened out; set even_batches = false, or give it a batch_size()");
  }
  validate(s);
  auto own = iterable && world_size > 1 && !c.split_batches && !c.dispatch_batches.value_or(false) ? iterable->shard(rank, world_size) : nullptr;
  const bool dispatches = world_size > 1 && c.dispatch_batches.value_or(iterable && !own && options.batch_size && given);
  if (dispatches && !options.batch_size) fail("dispatch_batches needs a batch_size; a data set whose items are batches is dealt without it");
  if (dispatches && !given) fail("dispatch_batches needs a way to broadcast, which Accelerator::prepare gives");
  sharding = s;
  own_stream = std::move(own);
  dispatch = dispatches;
  broadcast = std::move(given);
  if (!options.shuffle) return;
  seedable = c.use_seedable_sampler;
  if (seedable) made_sampler = std::make_unique<SeedableRandomSampler>(map->size(), c.data_seed);
  else use_seed(options.seed.value_or(shared_seed));
}

BatchSharding DataLoader::Impl::reading(std::int64_t first) const {
  auto s = sharding;
  if (dispatch || own_stream) {
    s.batch_size = dispatch ? troupe::total_batch_size(s) : s.batch_size;
    s.rank = 0;
    s.world_size = 1;
    s.split_batches = false;
  }
  if (!options.batch_size) s.drop_last = false;
  s.first = first;
  return s;
}

void DataLoader::Impl::check(const LoaderPosition& p) const {
  if (p.epoch < 0) fail("epoch = " + std::to_string(p.epoch) + "; it must be at least 0");
  if (p.num_batches < 0) fail("cannot skip " + std::to_string(p.num_batches) + " batches");
  validate(reading(p.first_sample));
}

std::vector<std::int64_t> DataLoader::Impl::order(std::int64_t epoch) {
  if (!options.sampler && !made_sampler)
    use_seed(static_cast<std::uint64_t>(at::empty({}, at::TensorOptions().dtype(at::kLong)).random_().item<std::int64_t>()));
  auto& sampler = options.sampler ? *options.sampler : *made_sampler;
  auto order = sampler.order(epoch);
  if (order.size() != sampler.size())
    fail("the sampler gave " + std::to_string(order.size()) + " indices, but its size() is " + std::to_string(sampler.size()));
  return order;
}

std::shared_ptr<const EpochPlan> DataLoader::Impl::plan(const LoaderPosition& start) {
  auto s = reading(start.first_sample);
  const auto checked = [&](std::vector<std::int64_t> indices) {
    const auto size = static_cast<std::int64_t>(map->size());
    for (const auto index : indices) {
      if (index < 0 || index >= size) fail("the sampler gave index " + std::to_string(index) + ", but the data set has " + std::to_string(size) + " samples");
    }
    return indices;
  };
  const auto ranks = dispatch ? std::int64_t{sharding.world_size} : 1;
  if (!options.batch_sampler) {
    auto indices = order(start.epoch);
    return flat_plan(s, options.sampler ? checked(std::move(indices)) : std::move(indices), ranks);
  }
  auto lists = options.batch_sampler->batches(start.epoch);
  if (!has_lists()) {
    auto indices = checked(flattened(lists, sharding.batch_size));
    s.num_samples = std::ssize(indices);
    validate(s);
    return flat_plan(s, std::move(indices), ranks);
  }
  for (auto& list : lists) list = checked(std::move(list));
  s.batch_size = 1;
  return list_plan(s, std::move(lists), dispatch && !sharding.split_batches ? ranks : 1, ranks);
}

std::int64_t DataLoader::Impl::samples_after(const LoaderPosition& start, std::int64_t num_batches) {
  if (num_batches == 0) return start.first_sample;
  if (options.batch_sampler) return plan(start)->samples_after(num_batches);
  return samples_taken(reading(start.first_sample), num_batches);
}

std::optional<std::int64_t> DataLoader::Impl::num_samples() {
  if (options.batch_sampler) {
    std::int64_t sum = 0;
    for (const auto& list : options.batch_sampler->batches(shared->next.epoch)) sum += std::ssize(list);
    return sum;
  }
  return map ? sharding.num_samples : iterable->size();
}

std::int64_t DataLoader::Impl::size() {
  if (options.batch_sampler) return plan({shared->next.epoch})->size();
  auto s = reading(0);
  if (map) return num_batches(s);
  const auto samples = own_stream ? own_stream->size() : iterable->size();
  if (!samples) throw Failure{Errc::Unsupported, "DataLoader: the iterable data set does not say its size, so the number of batches is not known"};
  s.num_samples = *samples;
  s.even_batches = true;
  return num_batches(s);
}

std::unique_ptr<BatchPipe> DataLoader::Impl::reader(const LoaderPosition& start, const std::shared_ptr<const EpochPlan>& plan) {
  const auto& stream = own_stream ? own_stream : iterable;
  const StreamShare share{reading(start.first_sample), dispatch ? sharding.world_size : 1};
  const auto source = [&]() -> std::unique_ptr<JobSource> {
    if (plan) return std::make_unique<PlannedJobs>(plan, start.num_batches, start.ahead);
    return std::make_unique<StreamReader>(stream, start, share);
  };
  const auto collate = options.collate ? options.collate : Collate{default_collate};
  std::int64_t workers = options.num_workers;
  if (plan) workers = std::clamp<std::int64_t>(plan->size() - start.num_batches, 0, workers);
  if (workers == 0) return std::make_unique<DirectPipe>(source(), batch_maker(map, collate, options.batch_size.has_value()));
  if (!options.worker_processes) {
    const auto window = workers * options.prefetch_factor;
    const auto useful = plan ? std::min(window, plan->size() - start.num_batches) : window;
    return std::make_unique<Prefetcher>(Prefetcher::Options{static_cast<int>(workers), useful, options.in_order, options.timeout}, source(),
                                        batch_maker(map, collate, options.batch_size.has_value()));
  }
  auto used = pool;
  if (!used || used->broken() || used.use_count() > 2) {  // an iterator that still goes through an epoch has its own
    pool.reset();
    const auto size = map ? std::optional{map->size()} : std::nullopt;
    used = std::make_shared<WorkerPool>(WorkerPool::Options{*options.worker_processes, options.num_workers, options.prefetch_factor, options.in_order,
                                                            options.batch_size.has_value(), options.timeout, size, iterable != nullptr});
    if (options.persistent_workers) pool = used;
  }
  if (plan) return used->load(source());
  return used->read({start, share, own_stream ? sharding.rank : 0, own_stream ? sharding.world_size : 0});
}

DataLoader::Impl::Made DataLoader::Impl::epoch(const LoaderPosition& start) {
  Made made;
  const bool reads = !dispatch || sharding.rank == 0;
  const auto planned = map && reads ? plan(start) : nullptr;
  if (planned) {
    made.facts = {dispatch ? std::nullopt : std::optional{planned->size()}, planned->remainder(), [planned](auto count) { return planned->samples_after(count); }};
  } else {
    made.facts.samples_after = [s = reading(start.first_sample)](auto count) { return samples_taken(s, count); };
    if (map && !options.batch_sampler) made.facts.remainder = remainder(reading(start.first_sample));
  }
  if (!options.batch_size || own_stream) made.facts.remainder = -1;
  if (reads) made.pipe = reader(start, planned);
  if (dispatch) made.pipe = std::make_unique<DispatchPipe>(std::move(made.pipe), broadcast, sharding.rank, sharding.world_size);
  return made;
}

}  // namespace troupe
