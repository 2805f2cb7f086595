#include <arrow/array.h>
#include <arrow/buffer.h>
#include <arrow/compute/api.h>
#include <arrow/record_batch.h>
#include <arrow/type.h>

#include <algorithm>
#include <numeric>

#include "arrow_check.hpp"
#include "rng.hpp"
#include "spill.hpp"

namespace troupe::detail {

namespace {

constexpr std::int64_t kBucketBytes = 32 << 20;   ///< of storage; a bucket is held in memory while it is read
constexpr std::int64_t kPendingBytes = 32 << 20;  ///< of rows that wait to be written together
constexpr std::int64_t kMemoryBytes = 64 << 20;   ///< of a shuffle's rows that need no file

Batch gather(const Batch& rows, const std::vector<std::int64_t>& order) {
  const auto indices = std::make_shared<arrow::Int64Array>(static_cast<std::int64_t>(order.size()), arrow::Buffer::Wrap(order.data(), order.size()));
  return check(arrow::compute::Take(arrow::Datum{rows}, arrow::Datum{indices}, arrow::compute::TakeOptions::NoBoundsCheck()), "shuffling").record_batch();
}

/// One pass in a random order: each row goes to a random bucket, each bucket is permuted. The buckets, one behind the other, are a random
/// permutation of all rows. A fragment is a bucket.
class ShuffledPass : public PreparedSource {
 public:
  ShuffledPass(Dataset dataset, std::shared_ptr<arrow::Schema> schema, std::int64_t num_buckets, std::uint64_t seed, std::int64_t pass, std::string fingerprint)
      : dataset_(std::move(dataset)), schema_(std::move(schema)), num_buckets_(num_buckets), seed_(mix(seed, static_cast<std::uint64_t>(pass))), pass_(pass),
        fingerprint_(std::move(fingerprint)), buckets_(static_cast<std::size_t>(num_buckets)), store_(kMemoryBytes) {}

  const std::shared_ptr<arrow::Schema>& schema() const override { return schema_; }
  const std::vector<Fragment>& fragments() const override {
    std::call_once(once_, [this] {
      fragments_.resize(buckets_.size());
      for (std::size_t i = 0; i < fragments_.size(); ++i) fragments_[i].path = "shuffle bucket " + std::to_string(i);
      if (!dataset_.plan()->keeps_rows()) return;
      const std::int64_t rows = dataset_.num_rows({}, pass_);
      for (auto& fragment : fragments_) fragment.num_rows = 0;
      for (std::int64_t row = 0; row < rows; ++row) ++*fragments_[bucket_of(row)].num_rows;
    });
    return fragments_;
  }

  std::unique_ptr<FragmentReader> open(std::int64_t fragment, std::int64_t first_row, const ReadOptions& options) const override {
    const auto index = static_cast<std::size_t>(fragment);
    bool ready = false;
    {
      const std::lock_guard lock{mutex_};
      ready = buckets_[index].ready;
    }
    if (!ready) prepare_all();
    Batches parts;
    for (const auto entry : buckets_[index].entries) parts.push_back(store_.get(entry));
    Batch rows = concatenate(parts);
    parts.clear();
    if (rows) rows = gather(rows, permutation(rows->num_rows(), mix(seed_, ~static_cast<std::uint64_t>(fragment))));
    return batch_reader(std::move(rows), fragment, first_row, options);
  }

  std::int64_t count_rows(std::int64_t fragment) const override {
    const auto& known = fragments()[static_cast<std::size_t>(fragment)].num_rows;
    if (known) return *known;
    prepare_all();
    std::int64_t rows = 0;
    for (const auto entry : buckets_[static_cast<std::size_t>(fragment)].entries) rows += store_.rows(entry);
    return rows;
  }

  std::string fingerprint() const override { return fingerprint_; }

  void prepare(const std::vector<std::int64_t>& wanted, std::stop_token stop) const override {
    const std::lock_guard lock{mutex_};
    std::vector<bool> missing(buckets_.size());
    bool any = false;
    for (const auto fragment : wanted) {
      const auto index = static_cast<std::size_t>(fragment);
      missing[index] = !buckets_[index].ready;
      any = any || missing[index];
    }
    if (any) fill(missing, stop);
  }

 private:
  struct Bucket {
    bool ready = false;
    std::vector<std::size_t> entries;  ///< in the store
  };

  std::size_t bucket_of(std::int64_t row) const {
    return static_cast<std::size_t>(scale(mix(seed_, static_cast<std::uint64_t>(row)), static_cast<std::uint64_t>(num_buckets_)));
  }

  void prepare_all() const {
    std::vector<std::int64_t> all(buckets_.size());
    std::iota(all.begin(), all.end(), 0);
    prepare(all, {});
  }

  /// Runs the data set once and keeps the rows of the missing buckets.
  void fill(const std::vector<bool>& missing, std::stop_token stop) const {
    StreamOptions options;
    options.epoch = pass_;
    options.execution.memory_budget_bytes = kPendingBytes;
    auto stream = dataset_.stream(options);
    const std::stop_callback on_stop{stop, [&stream] { stream.stop(); }};
    Batches waiting;
    std::int64_t first = 0;
    std::int64_t bytes = 0;
    const auto deal_out = [&] {
      if (const Batch rows = concatenate(std::exchange(waiting, {}))) {
        deal(rows, first, missing);
        first += rows->num_rows();
      }
      bytes = 0;
    };
    try {
      while (auto batch = stream.next()) {
        bytes += num_bytes({batch});
        waiting.push_back(std::move(batch));
        if (bytes > kPendingBytes) deal_out();
      }
      deal_out();
    } catch (...) {
      for (std::size_t b = 0; b < missing.size(); ++b)
        if (missing[b]) buckets_[b].entries.clear();
      throw;
    }
    for (std::size_t b = 0; b < missing.size(); ++b) buckets_[b].ready = buckets_[b].ready || missing[b];
  }

  /// Keeps the rows, which are numbered from `first` on, of the missing buckets.
  void deal(const Batch& rows, std::int64_t first, const std::vector<bool>& missing) const {
    std::vector<std::vector<std::int64_t>> rows_of(buckets_.size());
    for (std::int64_t i = 0; i < rows->num_rows(); ++i)
      if (const auto bucket = bucket_of(first + i); missing[bucket]) rows_of[bucket].push_back(i);
    for (std::size_t b = 0; b < rows_of.size(); ++b)
      if (!rows_of[b].empty()) buckets_[b].entries.push_back(store_.add(gather(rows, rows_of[b])));
  }

  Dataset dataset_;
  std::shared_ptr<arrow::Schema> schema_;
  std::int64_t num_buckets_;
  std::uint64_t seed_;
  std::int64_t pass_;
  std::string fingerprint_;
  mutable std::once_flag once_;
  mutable std::vector<Fragment> fragments_;
  mutable std::mutex mutex_;
  mutable std::vector<Bucket> buckets_;  ///< a ready one does not change
  mutable SpillStore store_;
};

class ShuffledSource : public EpochSource {
 public:
  ShuffledSource(Dataset dataset, std::uint64_t seed) : dataset_(std::move(dataset)), seed_(seed) {
    std::int64_t bytes = 0;
    for (const auto& fragment : dataset_.plan()->source->fragments()) bytes += fragment.num_bytes;
    num_buckets_ = std::clamp<std::int64_t>(bytes / kBucketBytes, 16, 4096);
  }
  SourcePtr at_pass(std::int64_t pass) const override {
    const std::lock_guard lock{mutex_};
    auto source = passes_[pass].lock();
    if (!source) {
      std::erase_if(passes_, [](const auto& entry) { return entry.second.expired(); });
      source = std::make_shared<ShuffledPass>(dataset_, schema(), num_buckets_, seed_, pass, fingerprint());
      passes_[pass] = source;
    }
    latest_ = source;  // what was prepared to count rows is there when they are read
    return source;
  }
  /// Of the rows as they are before.
  SourcePtr sample() const override {
    const auto& plan = *dataset_.plan();
    std::vector<Step> steps;
    for (const auto& step : plan.steps)
      if (!step.is_window()) steps.push_back(step);
    const auto* changing = dynamic_cast<const EpochSource*>(plan.source.get());
    return steps_source(changing ? changing->sample() : plan.source, plan.columns, std::move(steps));
  }
  const std::vector<Fragment>& fragments() const override {
    // Only their number means something: what is in them differs from pass to pass.
    std::call_once(once_, [this] { fragments_.resize(static_cast<std::size_t>(num_buckets_)); });
    return fragments_;
  }
  const std::shared_ptr<arrow::Schema>& schema() const override {
    std::call_once(schema_once_, [this] { schema_ = dataset_.schema(); });
    return schema_;
  }
  std::string fingerprint() const override { return "shuffle " + std::to_string(seed_) + " (" + dataset_.fingerprint() + ")"; }

 private:
  Dataset dataset_;
  std::uint64_t seed_;
  std::int64_t num_buckets_ = 16;
  mutable std::mutex mutex_;
  mutable std::map<std::int64_t, std::weak_ptr<const Source>> passes_;
  mutable SourcePtr latest_;
  mutable std::once_flag once_, schema_once_;
  mutable std::vector<Fragment> fragments_;
  mutable std::shared_ptr<arrow::Schema> schema_;
};

}  // namespace

SourcePtr shuffled_source(const Dataset& dataset, std::uint64_t seed) { return std::make_shared<ShuffledSource>(dataset, seed); }

}  // namespace troupe::detail
