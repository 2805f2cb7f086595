#pragma once

#include <troupe/object_store.hpp>

#include <chrono>
#include <functional>
#include <memory>

namespace troupe {

/// When a call that failed is made again. Only errors that are `worth_retrying` are.
struct RetryPolicy {
  std::chrono::milliseconds first_delay{500};
  std::chrono::milliseconds longest_delay{30'000};
  std::chrono::milliseconds deadline{600'000};  ///< from the call's beginning: no try begins later
  std::chrono::milliseconds check_deadline{20'000};  ///< of `check`, for which somebody waits
};

/// Pause before try number `tries` + 1: doubles from one try to the next, twice as long when throttled, at most the longest;
/// then scaled by 0.5 + `uniform`/2, so that clients do not come back all at once.
/// @param tries   that failed so far; 1 at least
/// @param uniform in [0, 1)
[[nodiscard]] std::chrono::milliseconds pause_before_retry(const RetryPolicy& policy, int tries, StoreError error, double uniform);

/// Time as the retrying store sees it.
class StoreClock {
 public:
  virtual ~StoreClock() = default;
  [[nodiscard]] virtual std::chrono::steady_clock::time_point now() = 0;
  /// Pauses; false, at once, when interrupted.
  virtual bool pause(std::chrono::milliseconds time) = 0;
  /// Ends pauses under way and to come. Threads: any.
  virtual void interrupt() noexcept = 0;
};
[[nodiscard]] std::unique_ptr<StoreClock> make_store_clock();

/// One try that failed and will be made again.
struct StoreRetry {
  std::string what;  ///< "put checkpoint_000003/model.safetensors"
  StoreError error;
  std::string text;
  int tries = 1;
  std::chrono::milliseconds pause{0};
};

/// `store`, whose calls are tried again as the policy says. When one gives up it throws the last failure, with how often and
/// how long it was tried.
/// @param on_retry called on the thread that waits.
[[nodiscard]] std::unique_ptr<ObjectStore> with_retries(std::unique_ptr<ObjectStore> store, RetryPolicy policy,
                                                        std::unique_ptr<StoreClock> clock = make_store_clock(),
                                                        std::function<void(const StoreRetry&)> on_retry = {});

}  // namespace troupe
