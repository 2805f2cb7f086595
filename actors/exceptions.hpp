#pragma once

#include <troupe/errors.hpp>

#include <caf/fwd.hpp>

#include <chrono>
#include <new>
#include <thread>

namespace troupe {

/// Where memory has run out, room comes as others unwind: tries for ten seconds before it lets std::bad_alloc out.
template <class Work>
auto do_patiently(Work&& work) {
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds{10};
  for (;;) {
    try {
      return work();
    } catch (const std::bad_alloc&) {
      if (std::chrono::steady_clock::now() > deadline) throw;
    }
    std::this_thread::sleep_for(std::chrono::milliseconds{10});
  }
}

/// A handler that throws ends its actor. From here on the reason keeps the exception's code and text; CAF's own would print it, and end the
/// program when there is no memory for that.
void keep_exceptions(caf::scheduled_actor* self);

/// The code in such a reason; Internal for all others.
[[nodiscard]] Errc code_of(const caf::error& reason) noexcept;

}  // namespace troupe
