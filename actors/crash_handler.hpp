#pragma once

#include "black_box_memory.hpp"

#include <memory>

namespace troupe::detail {

/// Makes a rank's process write down how it crashes: SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT and std::terminate leave signal, address,
/// backtrace and what was thrown in `box`, then do what they did before. On `stack_signal()` a thread writes its stack into `box`.
/// Once a process, for as long as it lives.
void record_crashes_in(std::shared_ptr<BlackBoxMemory> box);

/// For ranks that are threads of this program: on `stack_signal()` such a rank's training thread writes its stack into its own box. False: the
/// program has a handler of its own for that signal. Threads: any.
[[nodiscard]] bool can_ask_threads_for_stacks() noexcept;

/// The real-time signal that makes the thread it is sent to write its stack; the group's process sends it (rank_stacks.hpp).
[[nodiscard]] int stack_signal() noexcept;

/// While it lives, its thread has a stack for signal handlers, so that a stack overflow can be told; not when memory has run out.
class HandlerStack {
 public:
  HandlerStack() noexcept;
  ~HandlerStack();
  HandlerStack(const HandlerStack&) = delete;
  HandlerStack& operator=(const HandlerStack&) = delete;

 private:
  std::unique_ptr<char[]> memory_;
};

/// The box of this process when it is a rank's; nullptr in others.
[[nodiscard]] std::shared_ptr<BlackBoxMemory> process_black_box() noexcept;

}  // namespace troupe::detail
