#include "prefetcher.hpp"

#include <algorithm>
#include <string>
#include <system_error>
#include <troupe/errors.hpp>
#include <utility>

namespace troupe {

Prefetcher::Prefetcher(int num_workers, std::int64_t window, std::int64_t first, std::int64_t last,
                       Load load)
    : window_(std::max<std::int64_t>(1, std::min(window, last - first))),
      last_(last),
      load_(std::move(load)),
      next_to_load_(first),
      next_to_take_(first),
      slots_(static_cast<std::size_t>(window_)) {
  const auto useful = std::min<std::int64_t>(num_workers, last - first);
  try {
    for (std::int64_t w = 0; w < useful; ++w)
      workers_.emplace_back([this](const std::stop_token& stop) { work(stop); });
  } catch (const std::system_error& error) {
    const auto started = workers_.size();
    workers_.clear();
    throw Failure{Errc::StartFailed, "DataLoader: only " + std::to_string(started) +
                                         " of num_workers = " + std::to_string(num_workers) +
                                         " threads could be started (" + error.what() +
                                         "); ask for fewer or raise the limit (ulimit -u)"};
  }
}

Prefetcher::~Prefetcher() {
  for (auto& worker : workers_)
    worker.request_stop();  // all at once: joining one by one would wait for each in turn
  workers_.clear();
}

std::optional<Batch> Prefetcher::next() {
  if (next_to_take_ >= last_) return std::nullopt;
  std::unique_lock lock{mutex_};
  auto& slot = slots_[static_cast<std::size_t>(next_to_take_ % window_)];
  ready_.wait(lock, [&] { return slot.ready; });
  auto taken = std::exchange(slot, {});
  ++next_to_take_;
  lock.unlock();
  space_.notify_one();
  if (taken.error) std::rethrow_exception(taken.error);
  return std::move(taken.batch);
}

void Prefetcher::work(const std::stop_token& stop) {
  std::unique_lock lock{mutex_};
  for (;;) {
    const auto may_load = [&] {
      return next_to_load_ >= last_ || next_to_load_ < next_to_take_ + window_;
    };
    if (!space_.wait(lock, stop, may_load) || next_to_load_ >= last_ || stop.stop_requested())
      break;
    const auto number = next_to_load_++;
    lock.unlock();
    Slot loaded{true, {}, nullptr};
    try {
      loaded.batch = load_(number);
    } catch (...) {
      loaded.error = std::current_exception();
    }
    lock.lock();
    slots_[static_cast<std::size_t>(number % window_)] = std::move(loaded);
    ready_.notify_one();
  }
  space_.notify_one();  // so that the workers that still wait see that there is nothing left
}

}  // namespace troupe
