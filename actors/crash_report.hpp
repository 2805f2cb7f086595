#pragma once

#include <troupe/black_box.hpp>

#include <chrono>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

// A rank's black box in words, for people. Lines end in '\n'. Read from a box of a process that is dead, or that may be doing anything:
// nothing in it is trusted.

namespace troupe::detail {

/// "SIGSEGV: nothing is mapped there, at address 0x2a0; in thread 71 'train', after step 3" and its backtrace, a line a frame; "" when
/// the box holds no crash.
[[nodiscard]] std::string crash_text(const BlackBox& box);

/// "nothing is mapped there, at address 0x2a0", of a box that holds a crash.
[[nodiscard]] std::string crash_reason(const BlackBox& box);

/// The latest `most` events, oldest first, with their age before `now`: "-0.012 s collective #12 all_reduce of encoder.5"; and what the
/// training thread waits in.
[[nodiscard]] std::string events_text(const BlackBox& box, std::chrono::steady_clock::time_point now, std::size_t most = 1000);

/// The stacks that threads wrote on request, the training thread's first.
[[nodiscard]] std::string stacks_text(const BlackBox& box, std::string_view maps);

/// "SIGSEGV", or "signal 77".
[[nodiscard]] std::string signal_name(int number);

}  // namespace troupe::detail
