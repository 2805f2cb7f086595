#include "crash_handler.hpp"

#include <execinfo.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <memory>
#include <new>

// Everything below that a signal handler calls is async-signal-safe, but for backtrace(): that is once it was called before, which
// loads the unwinder.

namespace troupe::detail {

namespace {

// Handlers have nothing but globals.
std::atomic<BlackBox*> process_box{nullptr};
std::shared_ptr<BlackBoxMemory> process_memory;  // set before any other thread runs
std::terminate_handler terminate_before = nullptr;

constexpr std::array crash_signals{SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT};
constexpr std::size_t handler_stack_bytes = 64 << 10;

std::uint64_t program_counter(const void* context) noexcept {
  const auto& machine = static_cast<const ucontext_t*>(context)->uc_mcontext;
#if defined(__x86_64__)
  return static_cast<std::uint64_t>(machine.gregs[REG_RIP]);
#elif defined(__aarch64__)
  return machine.pc;
#else
  (void)machine;
  return 0;
#endif
}

// The calling thread's, from where the signal met it.
void write_stack(BoxStack& stack, const void* context) noexcept {
  void* frames[BoxStack::max_frames];
  const int count = backtrace(frames, BoxStack::max_frames);
  const auto met = program_counter(context);
  int first = 0;
  while (first < count && reinterpret_cast<std::uint64_t>(frames[first]) != met) ++first;
  if (first == count) first = 0;  // the unwinder does not see through the handler here
  for (int i = first; i < count; ++i) stack.frames[i - first] = reinterpret_cast<std::uint64_t>(frames[i]);
  stack.num_frames = count - first;
  stack.thread = static_cast<std::int32_t>(syscall(SYS_gettid));
  prctl(PR_GET_NAME, stack.name);
  stack.ready.store(1, std::memory_order_release);
}

/// Copies the lines of /proc/self/maps whose pages can be executed, as "r-xp" says in the second column.
class MapsCopy {
 public:
  explicit MapsCopy(BlackBox& box) noexcept : box_(box) {}
  void run() noexcept {
    const int fd = open("/proc/self/maps", O_RDONLY | O_CLOEXEC);
    if (fd < 0) return;
    char bytes[4096];
    for (ssize_t got; (got = read(fd, bytes, sizeof bytes)) > 0;) {
      for (ssize_t i = 0; i < got; ++i) take(bytes[i]);
    }
    close(fd);
  }

 private:
  void take(char byte) noexcept {
    if (length_ < sizeof line_) line_[length_++] = byte;
    if (byte != '\n') return;
    const auto* space = static_cast<const char*>(std::memchr(line_, ' ', length_));
    const bool executable = space && space + 3 < line_ + length_ && space[3] == 'x';
    if (executable && box_.maps_length + length_ <= BlackBox::maps_bytes) {
      std::memcpy(box_.maps + box_.maps_length, line_, length_);
      box_.maps_length += static_cast<std::uint32_t>(length_);
    }
    length_ = 0;
  }

  BlackBox& box_;
  char line_[512];
  std::size_t length_ = 0;
};

void on_crash(int signal, siginfo_t* info, void* context) {
  auto& box = *process_box.load();
  std::uint32_t none = 0;
  if (box.crash.compare_exchange_strong(none, 1)) {
    box.signal = signal;
    box.signal_code = info->si_code;
    box.fault_address = reinterpret_cast<std::uint64_t>(info->si_addr);
    box.program_counter = program_counter(context);
    write_stack(box.crash_stack, context);
    MapsCopy{box}.run();
    box.crash.store(2, std::memory_order_release);
  } else if (box.crash_stack.thread != static_cast<std::int32_t>(syscall(SYS_gettid))) {
    // Another thread crashes too: the first one's words count, and it ends the process.
    for (int i = 0; i < 100 && box.crash.load() != 2; ++i) {
      const timespec moment{0, 10'000'000};
      nanosleep(&moment, nullptr);
    }
  }
  struct sigaction by_default {};
  by_default.sa_handler = SIG_DFL;
  sigaction(signal, &by_default, nullptr);
  if (info->si_code <= 0 || signal == SIGABRT) raise(signal);  // sent, not caused: it would not come again by itself
}

void on_stack_signal(int, siginfo_t*, void* context) {
  const int saved = errno;
  auto* box = process_box.load();
  if (!box) box = current_black_box();  // a thread's own, of a rank that is one
  const auto place = box ? box->next_stack.fetch_add(1) : 0;
  if (box && place < BlackBox::max_stacks) write_stack(box->stacks[place], context);
  errno = saved;
}

[[noreturn]] void on_terminate() {
  auto& box = *process_box.load();
  const char* what = "std::terminate was called";
  try {
    if (const auto thrown = std::current_exception()) std::rethrow_exception(thrown);
  } catch (const std::exception& error) {
    what = error.what();
    std::strncpy(box.last_words, what, sizeof box.last_words - 1);
  } catch (...) {
    what = "something that is no std::exception";
  }
  if (box.last_words[0] == '\0') std::strncpy(box.last_words, what, sizeof box.last_words - 1);
  if (terminate_before) terminate_before();  // says it on stderr
  std::abort();
}

}  // namespace

int stack_signal() noexcept { return SIGRTMAX - 3; }

std::shared_ptr<BlackBoxMemory> process_black_box() noexcept { return process_memory; }

HandlerStack::HandlerStack() noexcept : memory_(new (std::nothrow) char[handler_stack_bytes]) {
  if (!memory_) return;
  stack_t stack{};
  stack.ss_sp = memory_.get();
  stack.ss_size = handler_stack_bytes;
  sigaltstack(&stack, nullptr);
}

HandlerStack::~HandlerStack() {
  stack_t none{};
  none.ss_flags = SS_DISABLE;
  sigaltstack(&none, nullptr);
}

bool can_ask_threads_for_stacks() noexcept {
  static const bool is_ours = [] {
    struct sigaction before {};
    if (sigaction(stack_signal(), nullptr, &before) != 0) return false;
    if (before.sa_flags & SA_SIGINFO) return before.sa_sigaction == on_stack_signal;
    if (before.sa_handler != SIG_DFL) return false;
    void* frames[4];
    (void)backtrace(frames, 4);  // loads what it needs
    struct sigaction action {};
    action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_RESTART;
    sigemptyset(&action.sa_mask);
    action.sa_sigaction = on_stack_signal;
    return sigaction(stack_signal(), &action, nullptr) == 0;
  }();
  return is_ours;
}

void record_crashes_in(std::shared_ptr<BlackBoxMemory> box) {
  void* frames[4];
  (void)backtrace(frames, 4);  // loads what it needs
  process_box = &box->box();
  process_memory = std::move(box);
  struct sigaction action {};
  action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_RESTART;
  sigemptyset(&action.sa_mask);
  action.sa_sigaction = on_crash;
  for (const int signal : crash_signals) sigaction(signal, &action, nullptr);
  action.sa_sigaction = on_stack_signal;
  sigaction(stack_signal(), &action, nullptr);
  terminate_before = std::set_terminate(on_terminate);
}

}  // namespace troupe::detail
