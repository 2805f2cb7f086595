#include "prefetcher.hpp"

#include <algorithm>
#include <string>
#include <system_error>
#include <troupe/errors.hpp>
#include <troupe/start_limits.hpp>
#include <utility>

namespace troupe {

Prefetcher::Prefetcher(const Options& options, std::unique_ptr<JobSource> source, MakeBatch make)
    : options_(options), source_(std::move(source)), make_(std::move(make)), slots_(static_cast<std::size_t>(options.window)) {
  try {
    for (int w = 0; w < options_.num_workers; ++w)
      workers_.emplace_back([this](const std::stop_token& stop) { work(stop); });
  } catch (const std::system_error& error) {
    const auto started = workers_.size();
    for (auto& worker : workers_) worker.request_stop();
    workers_.clear();
    throw Failure{Errc::StartFailed, "DataLoader: only " + std::to_string(started) +
                                         " of num_workers = " + std::to_string(options_.num_workers) +
                                         " threads could be started (" + error.what() + "); " + limits_on_starting()};
  }
}

Prefetcher::~Prefetcher() {
  for (auto& worker : workers_)
    worker.request_stop();  // all at once: joining one by one would wait for each in turn
  workers_.clear();
}

std::optional<LoadedBatch> Prefetcher::next() {
  std::unique_lock lock{mutex_};
  const auto done = [&] { return has_ready() || (ended_ && handed_ == taken_); };
  if (options_.timeout.count() == 0) {
    ready_.wait(lock, done);
  } else if (!ready_.wait_for(lock, options_.timeout, done)) {
    throw Failure{Errc::DeadlinePassed, "DataLoader: none of " + std::to_string(options_.num_workers) + " worker threads had a batch within " +
                                            std::to_string(options_.timeout.count()) + " ms (timeout); batch " + std::to_string(handed_) +
                                            " of this loop is waited for"};
  }
  if (!has_ready()) return std::nullopt;
  Result taken;
  if (options_.in_order) {
    taken = std::move(*std::exchange(slots_[static_cast<std::size_t>(handed_ % options_.window)], std::nullopt));
  } else {
    taken = std::move(done_.front());
    done_.pop_front();
  }
  ++handed_;
  lock.unlock();
  space_.notify_one();
  if (taken.error) std::rethrow_exception(taken.error);
  return std::move(taken.batch);
}

std::optional<std::pair<std::int64_t, std::optional<BatchJob>>> Prefetcher::take(const std::stop_token& stop, std::exception_ptr& error) {
  const std::scoped_lock taking{take_mutex_};
  std::unique_lock lock{mutex_};
  if (!space_.wait(lock, stop, [&] { return ended_ || taken_ < handed_ + options_.window; }) || ended_ || stop.stop_requested()) return std::nullopt;
  lock.unlock();
  std::optional<BatchJob> job;
  try {
    job = source_->next();
  } catch (...) {
    error = std::current_exception();
  }
  lock.lock();
  ended_ = !job;
  if (!job && !error) {
    ready_.notify_one();
    return std::nullopt;
  }
  return std::pair{taken_++, std::move(job)};
}

void Prefetcher::work(const std::stop_token& stop) {
  for (;;) {
    Result result;
    auto taken = take(stop, result.error);
    if (!taken) break;
    auto& [place, job] = *taken;
    if (job) {
      try {
        result.batch = make_(std::move(*job));
      } catch (...) {
        result.error = std::current_exception();
      }
    }
    const std::scoped_lock lock{mutex_};
    if (options_.in_order) slots_[static_cast<std::size_t>(place % options_.window)] = std::move(result);
    else done_.push_back(std::move(result));
    ready_.notify_one();
  }
}

}  // namespace troupe
