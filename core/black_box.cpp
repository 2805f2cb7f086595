#include <troupe/black_box.hpp>

#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>

namespace troupe {

namespace {

using Clock = std::chrono::steady_clock;

constexpr std::size_t what_bytes = 15, label_bytes = 32;

// Per thread because collectives are called deep inside engines that know no rank.
thread_local BlackBox* current = nullptr;

std::int64_t since_epoch(Clock::time_point time) noexcept {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(time.time_since_epoch()).count();
}

/// One event as it lies in the ring.
struct Packed {
  std::int64_t time_ns;
  std::uint64_t number;
  EventKind kind;
  char what[what_bytes];
  char label[label_bytes];
};
static_assert(sizeof(Packed) == 64);
static_assert(std::atomic<std::uint64_t>::is_always_lock_free && std::atomic<std::uint32_t>::is_always_lock_free, "a box is shared by processes and signal handlers");

// Bytes of another process: only printable ones go on.
std::string text_of(const char* bytes, std::size_t most) {
  std::string text(bytes, strnlen(bytes, most));
  for (auto& byte : text) {
    if (static_cast<unsigned char>(byte) < 0x20 || byte == 0x7f) byte = '?';
  }
  return text;
}

}  // namespace

std::string_view name(WaitingIn what) noexcept {
  switch (what) {
    case WaitingIn::Nothing: return "nothing";
    case WaitingIn::Collective: return "a collective";
    case WaitingIn::Barrier: return "a barrier";
    case WaitingIn::StopStep: return "the agreed last step";
    case WaitingIn::Save: return "a save";
  }
  return "something unknown";
}

std::string_view name(StepPhase phase) noexcept {
  switch (phase) {
    case StepPhase::Other: return "the rest of its step";
    case StepPhase::Data: return "loading data";
    case StepPhase::Forward: return "the forward pass";
    case StepPhase::Backward: return "the backward pass";
    case StepPhase::Update: return "the update";
  }
  return "something unknown";
}

std::string_view name(EventKind kind) noexcept {
  switch (kind) {
    case EventKind::None: return "nothing";
    case EventKind::Started: return "train function started, attempt";
    case EventKind::Step: return "step completed";
    case EventKind::Report: return "report";
    case EventKind::Barrier: return "barrier";
    case EventKind::BarrierPassed: return "barrier passed";
    case EventKind::Collective: return "collective";
    case EventKind::CollectiveEnded: return "collective ended";
    case EventKind::Save: return "save";
    case EventKind::Data: return "data";
    case EventKind::Chaos: return "injected fault at step";
  }
  return "unknown";
}

std::string describe(const BoxEvent& event) {
  auto text = std::string(name(event.kind)) + " #" + std::to_string(event.number);
  if (!event.what.empty()) text += " " + event.what;
  if (!event.label.empty()) text += " of " + event.label;
  return text;
}

void BlackBox::begin_wait(WaitingIn what) noexcept {
  waiting_since_ns.store(since_epoch(Clock::now()), std::memory_order_relaxed);
  waiting_in.store(static_cast<std::uint32_t>(what), std::memory_order_release);
}

void BlackBox::end_wait() noexcept {
  const auto waited = since_epoch(Clock::now()) - waiting_since_ns.load(std::memory_order_relaxed);
  waited_ns.store(waited_ns.load(std::memory_order_relaxed) + waited, std::memory_order_relaxed);
  phase_since_ns.store(phase_since_ns.load(std::memory_order_relaxed) + waited, std::memory_order_relaxed);
  advance();
  waiting_in.store(0, std::memory_order_release);
}

void BlackBox::enter(StepPhase next) noexcept {
  constexpr auto order = std::memory_order_relaxed;
  const auto now = since_epoch(Clock::now());
  auto& sum = phase_ns[phase.load(order) % num_step_phases];
  sum.store(sum.load(order) + now - phase_since_ns.load(order), order);
  phase_since_ns.store(now, order);
  phase.store(static_cast<std::uint32_t>(next), order);
}

void BlackBox::note(EventKind kind, std::uint64_t number, std::string_view what, std::string_view label, Clock::time_point now) noexcept {
  Packed packed{since_epoch(now), number, kind, {}, {}};
  what.copy(packed.what, what_bytes);
  label.remove_prefix(label.size() - std::min(label.size(), label_bytes));
  label.copy(packed.label, label_bytes);
  std::array<std::uint64_t, 8> words;
  std::memcpy(words.data(), &packed, sizeof packed);
  auto& event = events[next_event.fetch_add(1, std::memory_order_relaxed) % num_events];
  for (std::size_t i = 0; i < words.size(); ++i) event.words[i].store(words[i], std::memory_order_relaxed);
}

void BlackBox::begin(std::uint64_t new_attempt, int new_rank) noexcept {
  constexpr auto order = std::memory_order_relaxed;
  waiting_in.store(0, order);
  waited_ns.store(0, order);
  steps.store(0, order);
  collectives.store(0, order);
  stop_calls.store(0, order);
  phase.store(0, order);
  phase_since_ns.store(since_epoch(Clock::now()), order);
  for (auto& sum : phase_ns) sum.store(0, order);
  rank.store(new_rank, order);
  attempt.store(new_attempt, order);
  training_thread.store(static_cast<std::int32_t>(syscall(SYS_gettid)), order);
  advance();
  note(EventKind::Started, new_attempt, {}, {}, Clock::now());
}

std::vector<BoxEvent> BlackBox::latest(std::size_t most) const {
  const auto end = next_event.load(std::memory_order_acquire);
  const auto count = std::min({end, std::uint64_t{num_events}, std::uint64_t{most}});
  std::vector<BoxEvent> result;
  for (auto at = end - count; at < end; ++at) {
    std::array<std::uint64_t, 8> words;
    for (std::size_t i = 0; i < words.size(); ++i) words[i] = events[at % num_events].words[i].load(std::memory_order_relaxed);
    Packed packed;
    std::memcpy(&packed, words.data(), sizeof packed);
    if (packed.kind == EventKind::None || packed.kind > EventKind::Data) continue;  // its writer died before the end
    result.push_back({packed.time_ns, packed.kind, packed.number, text_of(packed.what, what_bytes), text_of(packed.label, label_bytes)});
  }
  return result;
}

BlackBoxScope::BlackBoxScope(BlackBox* box) noexcept : before_(current) { current = box; }
BlackBoxScope::~BlackBoxScope() { current = before_; }

BlackBox* current_black_box() noexcept { return current; }

}  // namespace troupe
