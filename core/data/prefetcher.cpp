#include "prefetcher.hpp"

namespace troupe {

Prefetcher::Prefetcher(std::size_t num_batches, int num_workers, std::size_t ahead, Make make)
    : num_batches_(num_batches), ahead_(ahead), make_(std::move(make)) {
  for (int i = 0; i < num_workers; ++i) workers_.emplace_back([this] { work(); });
}

Prefetcher::~Prefetcher() {
  {
    const std::lock_guard lock{mutex_};
    stopping_ = true;
  }
  changed_.notify_all();
  for (auto& worker : workers_) worker.join();
}

std::optional<Batch> Prefetcher::next() {
  std::unique_lock lock{mutex_};
  if (read_ == num_batches_) return std::nullopt;
  changed_.wait(lock, [this] { return made_.contains(read_); });
  auto made = std::move(made_.extract(read_).mapped());
  ++read_;
  lock.unlock();
  changed_.notify_all();
  if (made.error) std::rethrow_exception(made.error);
  return std::move(made.batch);
}

void Prefetcher::work() {
  std::unique_lock lock{mutex_};
  for (;;) {
    changed_.wait(lock, [this] { return stopping_ || claimed_ == num_batches_ || claimed_ < read_ + ahead_; });
    if (stopping_ || claimed_ == num_batches_) return;
    const auto number = claimed_++;
    lock.unlock();
    Made made;
    try {
      made.batch = make_(number);
    } catch (...) {
      made.error = std::current_exception();
    }
    lock.lock();
    made_.emplace(number, std::move(made));
    changed_.notify_all();
  }
}

}  // namespace troupe
