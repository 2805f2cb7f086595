#include "batch_maker.hpp"

#include <troupe/errors.hpp>

#include <arrow/record_batch.h>

#include <algorithm>
#include <chrono>
#include <utility>

namespace troupe::detail {

namespace {

constexpr int max_threads = 4;  // as Ray's

}  // namespace

BatchMaker::BatchMaker(DatasetStream stream, const IterBatchesOptions& options, DeviceFeed* feed)
    : options_(options), feed_(feed), stream_(std::move(stream)) {
  const int threads = std::min(max_threads, options_.prefetch_batches);
  for (int t = 0; t < threads; ++t) threads_.emplace_back([this](const std::stop_token& stop) { work(stop); });
}

BatchMaker::~BatchMaker() {
  for (auto& thread : threads_) thread.request_stop();
  stream_.stop();  // frees the one that waits for rows
  threads_.clear();
}

std::optional<BatchMaker::Rows> BatchMaker::fetch() {
  auto rows = stream_.next_batch(options_.batch_size, options_.drop_last);
  if (!rows) return std::nullopt;
  Rows fetched;
  fetched.made.cursor = stream_.cursor();
  fetched.made.num_rows = rows->num_rows();
  fetched.made.padding_rows = stream_.padding_rows();
  fetched.made.is_last = fetched.made.cursor.epoch_finished();
  fetched.rows = std::move(rows);
  return fetched;
}

std::optional<BatchMaker::Rows> BatchMaker::take() {
  if (ahead_error_) std::rethrow_exception(ahead_error_);
  if (has_ended_) return std::nullopt;
  if (!std::exchange(has_begun_, true)) ahead_ = fetch();
  auto rows = std::exchange(ahead_, std::nullopt);
  if (!rows || rows->made.is_last) {
    has_ended_ = true;
    return rows;
  }
  try {
    ahead_ = fetch();
  } catch (...) {
    ahead_error_ = std::current_exception();
    return rows;
  }
  if (ahead_) return rows;
  rows->made.is_last = has_ended_ = true;
  return rows;
}

MadeBatch BatchMaker::make(Rows rows) const {
  auto made = std::move(rows.made);
  const BatchColumns columns{std::move(rows.rows), options_.padding};
  if (options_.collate_fn) {
    try {
      made.batch = options_.collate_fn(columns);
    } catch (const Failure& failure) {
      throw Failure{failure.code(), std::string("collate_fn: ") + failure.what()};
    } catch (const std::exception& error) {
      throw Failure{Errc::DataMalformed, std::string("collate_fn: ") + error.what()};
    }
  } else {
    made.batch = columns.to_batch();
    for (auto& [name, tensor] : made.batch) {
      if (const auto found = options_.dtypes.find(name); found != options_.dtypes.end()) tensor = tensor.to(found->second);
    }
  }
  if (feed_) {
    made.packed = feed_->pack(made.batch);
    made.batch = {};
  }
  return made;
}

void BatchMaker::work(const std::stop_token& stop) {
  for (;;) {
    std::optional<Rows> rows;
    Slot slot;
    std::int64_t number = 0;
    {
      // Waits for room with the stream in hand, so that rows are taken in the order in which there is room for them.
      const std::lock_guard taking{take_mutex_};
      number = next_taken_;
      {
        std::unique_lock lock{mutex_};
        if (!space_.wait(lock, stop, [&] { return end_ >= 0 || number < next_given_ + options_.prefetch_batches; }) || end_ >= 0) return;
      }
      ++next_taken_;
      try {
        rows = take();
      } catch (...) {
        slot.error = std::current_exception();
      }
      if (!rows) {
        const std::lock_guard lock{mutex_};
        end_ = number;
        slots_[number] = std::move(slot);
        ready_.notify_all();
        space_.notify_all();
        return;
      }
    }
    try {
      slot.made = make(std::move(*rows));
    } catch (...) {
      slot.error = std::current_exception();
    }
    const std::lock_guard lock{mutex_};
    slots_[number] = std::move(slot);
    ready_.notify_all();
  }
}

bool BatchMaker::is_ready() {
  const std::lock_guard lock{mutex_};
  return slots_.contains(next_given_);
}

std::optional<MadeBatch> BatchMaker::next(const std::function<void()>& on_slow) {
  if (threads_.empty()) {
    auto rows = take();
    if (!rows) return std::nullopt;
    return make(std::move(*rows));
  }
  std::unique_lock lock{mutex_};
  while (!ready_.wait_for(lock, std::chrono::seconds{1}, [&] { return slots_.contains(next_given_) || (end_ >= 0 && next_given_ > end_); })) {
    lock.unlock();
    on_slow();
    lock.lock();
  }
  const auto found = slots_.find(next_given_);
  if (found == slots_.end()) return std::nullopt;
  if (found->second.error) std::rethrow_exception(found->second.error);  // again at each later call
  if (!found->second.made) return std::nullopt;
  auto made = std::move(found->second.made);
  slots_.erase(found);
  ++next_given_;
  lock.unlock();
  space_.notify_all();
  return made;
}

}  // namespace troupe::detail
