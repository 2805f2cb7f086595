#include "crash_report.hpp"

#include "symbols.hpp"

#include <signal.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <span>

namespace troupe::detail {

namespace {

std::string text_of(const char* bytes, std::size_t most) {
  std::string text(bytes, strnlen(bytes, most));
  for (auto& byte : text) {
    if (static_cast<unsigned char>(byte) < 0x20) byte = ' ';
  }
  return text;
}

/// Why the kernel sent it.
const char* reason(int signal, int code) {
  if (code == SI_USER || code == SI_TKILL || code == SI_QUEUE) return signal == SIGABRT ? "abort() was called" : "sent by a process";
  if (signal == SIGSEGV) return code == SEGV_MAPERR ? "nothing is mapped there" : code == SEGV_ACCERR ? "no right to access it" : "memory fault";
  if (signal == SIGBUS) return code == BUS_ADRERR ? "no memory behind it: a file that shrank, or memory that ran out" : "bus error";
  if (signal == SIGFPE) return code == FPE_INTDIV ? "integer division by zero" : "arithmetic fault";
  if (signal == SIGILL) return "illegal instruction";
  return "caused by the program";
}

std::string stack_lines(const BoxStack& stack, std::string_view maps) {
  const auto count = static_cast<std::size_t>(std::clamp(stack.num_frames, 0, BoxStack::max_frames));
  const auto frames = symbolize(maps, std::span{stack.frames, count});
  std::string text;
  for (std::size_t i = 0; i < frames.size(); ++i) text += "  #" + std::to_string(i) + " " + frames[i] + "\n";
  return text;
}

std::string thread_text(const BoxStack& stack, const BlackBox& box) {
  const bool trains = stack.thread == box.training_thread.load();
  return "thread " + std::to_string(stack.thread) + " '" + text_of(stack.name, sizeof stack.name) + "'" + (trains ? " (the training thread)" : "");
}

}  // namespace

std::string signal_name(int number) {
  const char* abbreviation = sigabbrev_np(number);
  return abbreviation ? std::string("SIG") + abbreviation : "signal " + std::to_string(number);
}

std::string crash_reason(const BlackBox& box) {
  std::string text = reason(box.signal, box.signal_code);
  if (box.last_words[0] != '\0') text = "std::terminate: " + text_of(box.last_words, sizeof box.last_words);
  if (box.signal_code <= 0 || box.signal == SIGABRT) return text;
  char address[32];
  std::snprintf(address, sizeof address, ", at address 0x%llx", static_cast<unsigned long long>(box.fault_address));
  return text + address;
}

std::string crash_text(const BlackBox& box) {
  const auto state = box.crash.load(std::memory_order_acquire);
  if (state == 0) return {};
  auto text = signal_name(box.signal) + ": " + crash_reason(box) + "; in " + thread_text(box.crash_stack, box) + ", after step " + std::to_string(box.steps.load()) + "\n";
  const auto length = std::min<std::size_t>(box.maps_length, BlackBox::maps_bytes);
  text += stack_lines(box.crash_stack, {box.maps, length});
  if (state != 2) text += "  (it died while it wrote this)\n";
  return text;
}

std::string events_text(const BlackBox& box, std::chrono::steady_clock::time_point now, std::size_t most) {
  const auto to_ns = [](auto time) { return std::chrono::duration_cast<std::chrono::nanoseconds>(time).count(); };
  const auto age = [&](std::int64_t since_ns) {
    char text[40];
    std::snprintf(text, sizeof text, "%.3f s", static_cast<double>(to_ns(now.time_since_epoch()) - since_ns) * 1e-9);
    return std::string(text);
  };
  std::string text;
  for (const auto& event : box.latest(most)) text += "  -" + age(event.time_ns) + "  " + describe(event) + "\n";
  const auto waiting = static_cast<WaitingIn>(box.waiting_in.load());
  if (waiting != WaitingIn::Nothing) text += "  waiting in " + std::string(name(waiting)) + " for " + age(box.waiting_since_ns.load()) + "\n";
  return text;
}

std::string stacks_text(const BlackBox& box, std::string_view maps) {
  const auto count = std::min<std::size_t>(box.next_stack.load(), BlackBox::max_stacks);
  std::string first, rest;
  for (std::size_t i = 0; i < count; ++i) {
    const auto& stack = box.stacks[i];
    if (stack.ready.load(std::memory_order_acquire) != 1) continue;
    const bool trains = stack.thread == box.training_thread.load();
    (trains ? first : rest) += thread_text(stack, box) + "\n" + stack_lines(stack, maps);
  }
  return first + rest;
}

}  // namespace troupe::detail
