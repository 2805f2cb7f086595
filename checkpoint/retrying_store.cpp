#include <troupe/retrying_store.hpp>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <condition_variable>
#include <mutex>
#include <random>

namespace troupe {

namespace {

using std::chrono::milliseconds;

class RealClock final : public StoreClock {
 public:
  std::chrono::steady_clock::time_point now() override { return std::chrono::steady_clock::now(); }
  bool pause(milliseconds time) override {
    std::unique_lock lock{mutex_};
    return !wake_.wait_for(lock, time, [&] { return interrupted_; });
  }
  void interrupt() noexcept override {
    {
      const std::lock_guard lock{mutex_};
      interrupted_ = true;
    }
    wake_.notify_all();
  }

 private:
  std::mutex mutex_;
  std::condition_variable wake_;
  bool interrupted_ = false;
};

class RetryingStore final : public ObjectStore {
 public:
  RetryingStore(std::unique_ptr<ObjectStore> store, RetryPolicy policy, std::unique_ptr<StoreClock> clock,
                std::function<void(const StoreRetry&)> on_retry)
      : store_(std::move(store)), policy_(policy), clock_(std::move(clock)), on_retry_(std::move(on_retry)) {}

  std::string url() const override { return store_->url(); }
  void check() override {
    again("look at", "", [&] { store_->check(); }, std::min(policy_.deadline, policy_.check_deadline));
  }
  void put(const std::string& key, const std::filesystem::path& file) override {
    again("put", key, [&] { store_->put(key, file); });
  }
  void get(const std::string& key, std::uint64_t begin, std::span<std::byte> into) override {
    again("get", key, [&] { store_->get(key, begin, into); });
  }
  std::optional<ObjectInfo> head(const std::string& key) override {
    return again("head", key, [&] { return store_->head(key); });
  }
  std::vector<ObjectInfo> list(const std::string& prefix) override {
    return again("list", prefix, [&] { return store_->list(prefix); });
  }
  void remove(const std::string& key) override {
    again("remove", key, [&] { store_->remove(key); });
  }
  void cancel() noexcept override {
    cancelled_ = true;
    store_->cancel();
    clock_->interrupt();
  }

 private:
  template <class F>
  auto again(const char* verb, const std::string& key, F&& call) -> decltype(call()) {
    return again(verb, key, std::forward<F>(call), policy_.deadline);
  }
  template <class F>
  auto again(const char* verb, const std::string& key, F&& call, milliseconds deadline) -> decltype(call()) {
    const auto began = clock_->now();
    for (int tries = 1;; ++tries) {
      if (cancelled_) throw cancelled(verb, key);
      try {
        return call();
      } catch (const StoreFailure& failure) {
        if (!worth_retrying(failure.error())) throw;
        wait_or_give_up({std::string(verb) + " " + key, failure.error(), failure.what(), tries, {}}, began, deadline, verb, key);
      }
    }
  }

  void wait_or_give_up(StoreRetry retry, std::chrono::steady_clock::time_point began, milliseconds deadline, const char* verb,
                       const std::string& key) {
    retry.pause = pause_before_retry(policy_, retry.tries, retry.error, draw());
    const auto so_far = std::chrono::duration_cast<milliseconds>(clock_->now() - began);
    if (so_far + retry.pause > deadline) {
      char seconds[32];
      std::snprintf(seconds, sizeof seconds, "%.1f", static_cast<double>(so_far.count()) / 1000);
      throw StoreFailure{retry.error, retry.text + " (tried " + std::to_string(retry.tries) + " times in " + seconds + " s)"};
    }
    if (on_retry_) on_retry_(retry);
    if (!clock_->pause(retry.pause)) throw cancelled(verb, key);
  }

  StoreFailure cancelled(const char* verb, const std::string& key) const {
    return {StoreError::Cancelled, "cannot " + std::string(verb) + " " + key + " at " + store_->url() + ": cancelled"};
  }

  double draw() {
    const std::lock_guard lock{mutex_};
    return std::uniform_real_distribution{}(random_);
  }

  std::unique_ptr<ObjectStore> store_;
  RetryPolicy policy_;
  std::unique_ptr<StoreClock> clock_;
  std::function<void(const StoreRetry&)> on_retry_;
  std::atomic<bool> cancelled_{false};
  std::mutex mutex_;
  std::mt19937 random_{std::random_device{}()};
};

}  // namespace

milliseconds pause_before_retry(const RetryPolicy& policy, int tries, StoreError error, double uniform) {
  double pause = static_cast<double>(policy.first_delay.count()) * std::pow(2.0, std::min(tries - 1, 30));
  if (error == StoreError::Throttled) pause *= 2;
  pause = std::min(pause, static_cast<double>(policy.longest_delay.count()));
  return milliseconds{static_cast<milliseconds::rep>(pause * (0.5 + uniform / 2))};
}

std::unique_ptr<StoreClock> make_store_clock() { return std::make_unique<RealClock>(); }

std::unique_ptr<ObjectStore> with_retries(std::unique_ptr<ObjectStore> store, RetryPolicy policy, std::unique_ptr<StoreClock> clock,
                                          std::function<void(const StoreRetry&)> on_retry) {
  return std::make_unique<RetryingStore>(std::move(store), policy, std::move(clock), std::move(on_retry));
}

}  // namespace troupe
