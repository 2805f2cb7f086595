#include "iterator_state.hpp"

#include <troupe/black_box.hpp>
#include <troupe/errors.hpp>

#include <utility>

namespace troupe {

namespace {

using Clock = std::chrono::steady_clock;

[[noreturn]] void refuse(const std::string& name, const std::string& text) {
  throw Failure{Errc::InvalidArgument, "iter_batches of '" + name + "': " + text};
}

void check(const std::string& name, const IterBatchesOptions& o) {
  constexpr int most_batches = 4096;
  if (o.batch_size < 1) refuse(name, "batch_size = " + std::to_string(o.batch_size) + "; it must be at least 1");
  if (o.prefetch_batches < 0 || o.prefetch_batches > most_batches) refuse(name, "prefetch_batches = " + std::to_string(o.prefetch_batches) + "; it must be from 0 to 4096");
  if (o.local_shuffle_buffer_size < 0) refuse(name, "local_shuffle_buffer_size = " + std::to_string(o.local_shuffle_buffer_size) + "; it must be at least 0");
  if (o.local_shuffle_seed && o.local_shuffle_buffer_size == 0) refuse(name, "local_shuffle_seed is given, but no local_shuffle_buffer_size");
  if (o.collate_fn && !o.dtypes.empty()) refuse(name, "collate_fn and dtypes are given; let collate_fn make tensors of the types you want");
}

}  // namespace

/// One pass over an epoch's batches.
class DataIterator::Batches::Iterator::Pass {
 public:
  Pass(std::shared_ptr<Shared> shared, const IterBatchesOptions& options) : shared_(std::move(shared)) {
    began_ = Clock::now();
    auto stream = shared_->begin_epoch(options);
    auto* runtime = shared_->setup.runtime ? shared_->setup.runtime : &cpu_runtime();
    const bool stays = options.device && options.device->kind == Device::Kind::Cpu;
    if (runtime->has_own_memory() && !stays) {
      if (options.pin_memory) feed_ = std::make_unique<detail::DeviceFeed>(*runtime);
      else device_ = runtime->device();
    }
    maker_ = std::make_unique<detail::BatchMaker>(std::move(stream), options, feed_.get());
    shared_->current = this;
    shared_->loader_state = {};
    shared_->loader_stats = {};
    shared_->live_stats = [this] { return maker_->stats(); };
  }

  ~Pass() {
    for (const auto* next : {&coming_, &peeked_}) {
      if (*next && (*next)->coming.event) (*next)->coming.event->synchronize();  // its memory is the allocator's again
    }
    note_stream();
    if (shared_->current != this) return;
    shared_->current = nullptr;
    shared_->live_stats = nullptr;
    shared_->loader_state = {};
  }

  Pass(const Pass&) = delete;
  Pass& operator=(const Pass&) = delete;

  [[nodiscard]] std::optional<Batch> next() {
    // Asked before the batch is waited for: what it saves is of the loop's last step. Only of the first one nobody knows whether it will come.
    const bool more = has_begun_ ? !was_last_ : may_have_more();
    has_begun_ = true;
    if (const auto asked = shared_->asked) asked(more);
    if (!more) {
      finish();
      return std::nullopt;
    }
    if (!coming_ && !peeked_ && !may_have_more()) {
      throw Failure{Errc::Internal, "data set '" + shared_->setup.name + "': the epoch ended before its last batch"};
    }
    auto made = coming_ ? std::exchange(coming_, std::nullopt) : std::exchange(peeked_, std::nullopt);
    auto batch = feed_ ? feed_->finish(std::move(made->coming)) : to_device(std::move(made->made.batch));
    hand_out(made->made);
    if (feed_ && !was_last_ && maker_->is_ready()) {
      (void)may_have_more();
      coming_ = std::exchange(peeked_, std::nullopt);
    }
    mark_phase(StepPhase::Forward);
    return batch;
  }

 private:
  struct Next {
    detail::MadeBatch made;
    detail::DeviceFeed::Coming coming;
  };

  /// Waits for the next batch, or the end.
  bool may_have_more() {
    mark_phase(StepPhase::Data);
    const auto began = Clock::now();
    const auto number = static_cast<std::uint64_t>(shared_->loader_stats.num_batches);
    auto made = maker_->next([&] {
      if (auto* box = current_black_box()) box->note(EventKind::Data, number, "waits for", shared_->setup.name, Clock::now());
    });
    const auto now = Clock::now();
    auto& stats = shared_->loader_stats;
    (stats.num_batches == 0 ? stats.first_wait : stats.wait) += now - (stats.num_batches == 0 ? began_ : began);
    if (shared_->setup.waited) shared_->setup.waited(now - began);
    mark_phase(StepPhase::Other);
    if (!made) return false;
    peeked_.emplace(Next{std::move(*made), {}});
    if (feed_) peeked_->coming = feed_->begin_copy(std::move(peeked_->made.packed));
    return true;
  }

  Batch to_device(Batch batch) const {
    if (!device_) return batch;
    const at::Device place{at::kCUDA, static_cast<at::DeviceIndex>(device_->index)};
    if (device_->kind != Device::Kind::Cuda) return batch;
    for (auto& [name, tensor] : batch) tensor = tensor.to(place);
    return batch;
  }

  void hand_out(const detail::MadeBatch& made) {
    was_last_ = made.is_last;
    auto& s = *shared_;
    if (s.current != this) return;
    auto& stats = s.loader_stats;
    const auto now = Clock::now();
    if (stats.num_batches == 0) first_batch_ = now;
    stats.elapsed = now - first_batch_;
    ++stats.num_batches;
    stats.num_samples += made.num_rows;
    s.rows_in_hand = made.num_rows;
    s.padding_in_hand = made.padding_rows;
    s.loader_state.end_of_dataloader = made.is_last;
    if (!s.at) return;  // another start was set meanwhile
    s.at = made.cursor;
    s.at_beginning = false;
  }

  /// An epoch counts when its end is reached, unless another start was set meanwhile.
  void finish() {
    auto& s = *shared_;
    note_stream();
    if (s.current != this) return;
    if (s.loader_stats.num_batches > 0) s.loader_stats.elapsed = Clock::now() - first_batch_;
    if (!s.at) return;
    s.next_epoch = s.at->epoch + 1;
    s.at.reset();
  }

  void note_stream() {
    if (maker_ && shared_->current == this) shared_->stream_stats = maker_->stats();
  }

  std::shared_ptr<Shared> shared_;
  std::unique_ptr<detail::DeviceFeed> feed_;
  std::optional<Device> device_;                  // batches are copied there without pinned memory
  std::optional<Next> peeked_;                    // taken from the maker, not asked for yet
  std::optional<Next> coming_;                    // on its way to the device while the loop has the one before
  bool has_begun_ = false, was_last_ = false;
  Clock::time_point began_, first_batch_;
  std::unique_ptr<detail::BatchMaker> maker_;     // last: its threads use the feed
};

DataIterator::Batches::Iterator::Iterator() = default;
DataIterator::Batches::Iterator::~Iterator() = default;
DataIterator::Batches::Iterator::Iterator(Iterator&&) noexcept = default;
DataIterator::Batches::Iterator& DataIterator::Batches::Iterator::operator=(Iterator&&) noexcept = default;
DataIterator::Batches::Iterator::Iterator(std::unique_ptr<Pass> pass) : pass_(std::move(pass)) { ++*this; }

DataIterator::Batches::Iterator& DataIterator::Batches::Iterator::operator++() {
  batch_.reset();  // before the next is made: one batch of memory, not two
  batch_ = pass_->next();
  if (!batch_) pass_.reset();
  return *this;
}

DataIterator::Batches::Iterator DataIterator::Batches::begin() { return Iterator{std::make_unique<Iterator::Pass>(shared_, options_)}; }

DataIterator::DataIterator(Dataset dataset, Setup setup) : shared_(std::make_shared<Batches::Shared>(std::move(dataset), std::move(setup))) {}

DataIterator::Batches DataIterator::iter_batches(IterBatchesOptions options) const {
  check(shared_->setup.name, options);
  return Batches{shared_, std::move(options)};
}

std::int64_t DataIterator::num_rows() const { return shared_->dataset.num_rows(shared_->setup.split, shared_->next_epoch); }

std::int64_t DataIterator::num_batches(std::int64_t batch_size, bool drop_last) const {
  if (batch_size < 1) refuse(shared_->setup.name, "batch_size = " + std::to_string(batch_size) + "; it must be at least 1");
  return (num_rows() + (drop_last ? 0 : batch_size - 1)) / batch_size;
}

const Dataset& DataIterator::dataset() const { return shared_->dataset; }
const SplitOptions& DataIterator::split() const { return shared_->setup.split; }
std::int64_t DataIterator::epoch() const { return shared_->epoch(); }

void DataIterator::set_epoch(std::int64_t epoch) {
  if (epoch < 0) throw Failure{Errc::InvalidArgument, "set_epoch: epoch = " + std::to_string(epoch) + "; it must be at least 0"};
  shared_->next_epoch = epoch;
  shared_->next_cursors.clear();
  shared_->at.reset();
}

const LoaderState& DataIterator::state() const { return shared_->loader_state; }
const LoaderStats& DataIterator::batch_stats() const { return shared_->loader_stats; }

std::string DataIterator::stats() const {
  const auto& s = shared_->loader_stats;
  char text[200];
  std::snprintf(text, sizeof text, "%s, rank %d: %lld batches, %lld rows; waited for data %.1f %% of the time, %.0f ms for the first batch\n",
                shared_->setup.name.c_str(), shared_->setup.split.rank, static_cast<long long>(s.num_batches), static_cast<long long>(s.num_samples),
                100 * s.wait_share(), std::chrono::duration<double, std::milli>(s.first_wait).count());
  return text + (shared_->live_stats ? shared_->live_stats() : shared_->stream_stats).to_string();
}

std::shared_ptr<TrainingStream> DataIterator::training_stream() const { return shared_; }

}  // namespace troupe
