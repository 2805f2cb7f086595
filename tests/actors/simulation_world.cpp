#include "simulation_world.hpp"

#include <cxxabi.h>

#include <cstdlib>
#include <memory>
#include <troupe/trainer.hpp>

#include "../../actors/beats.hpp"
#include "../../actors/checkpoint_keeper.hpp"
#include "../../actors/rank_worker.hpp"
#include "../../actors/trainer_state.hpp"
#include "../../actors/worker_group_state.hpp"

namespace troupe::sim {

namespace {

constexpr std::size_t trace_lines = 400;
constexpr std::chrono::milliseconds longest_lateness{200};

std::uint64_t mix(std::uint64_t hash, std::uint64_t value) { return (hash ^ value) * 1099511628211ull; }

template <class T>
std::string short_name() {
  int status = 0;
  const std::unique_ptr<char, void (*)(void*)> name{abi::__cxa_demangle(typeid(T).name(), nullptr, nullptr, &status), std::free};
  const std::string text = status == 0 ? name.get() : typeid(T).name();
  return text.substr(text.rfind("::") == std::string::npos ? 0 : text.rfind("::") + 2);
}

std::string text_of(const RunError& error) { return std::string(name(error.code)) + " '" + error.message + "'"; }
std::string text_of(const std::optional<RunError>& error) { return error ? text_of(*error) : "none"; }
std::string text_of(Errc code) { return std::string(name(code)); }

template <class T>
std::string text_of_message(const T& message) {
  auto text = short_name<T>();
  const auto add = [&](const char* what, const std::string& value) { text += std::string(" ") + what + " " + value; };
  if constexpr (requires { message.attempt; }) add("attempt", std::to_string(message.attempt));
  if constexpr (requires { message.rank; }) add("rank", std::to_string(message.rank));
  if constexpr (requires { message.index; }) add("index", std::to_string(message.index));
  if constexpr (requires { message.sequence; }) add("sequence", std::to_string(message.sequence));
  if constexpr (requires { message.calls; }) add("calls", std::to_string(message.calls));
  if constexpr (requires { message.pending; }) text += message.pending ? " pending" : "";
  if constexpr (requires { message.num_writers; }) add("writers", std::to_string(message.num_writers));
  if constexpr (requires { message.checkpoint.index; }) add("checkpoint", std::to_string(message.checkpoint.index));
  if constexpr (requires { text_of(message.error); }) add("error", text_of(message.error));
  if constexpr (requires { message.code; }) add("code", text_of(message.code));
  if constexpr (requires { message.at_once; }) text += message.at_once ? " at once" : "";
  if constexpr (requires { message.reason; }) add("because", message.reason);
  if constexpr (requires { message.text; }) add("text", message.text);
  return text;
}

template <class... Ts>
std::string describe_one_of(const caf::type_erased_tuple& message) {
  std::string text;
  const bool known = ((message.match_elements<Ts>() && (text = text_of_message(message.get_as<Ts>(0)), true)) || ...);
  return known ? text : "something else";
}

}  // namespace

std::string describe(const caf::type_erased_tuple& message) {
  if (message.match_elements<caf::exit_msg>()) return "exit " + caf::to_string(message.get_as<caf::exit_msg>(0).reason);
  return describe_one_of<RunRank, CountForStop, StopAfter, BarrierPassed, AbortRank, RankStarted, Reported, CheckpointWritten, Progressed,
                         BarrierReached, StopCounted, RankDone, RankLost, AskBeat, AskStacks, Beat, StacksTold, KeepEvent, KeepPostMortem, ResizeRun, TimeIsUp, StartGroup, StopGroup, AbortGroup, GroupStarted, GroupEnded, StopRun, FindPlaces, PlacesFound, GrowthDue,
                         RunStarted, CheckpointCommitted, CheckpointFailed, RunWarning, RunEnded, ReportArrived, OpenRun, KeepReports,
                         CommitCheckpoint, DiscardCheckpoint, SettleRun, FinishRun, GiveUpUploads, RunOpened, CheckpointKept,
                         CheckpointNotKept, RunSettled, RunFinished, StorageFailed, WorkerEnded, RetryDue, KeepDue, WaitOverdue>(message);
}

std::uint64_t Random::next() {
  std::uint64_t x = state_ += 0x9e3779b97f4a7c15ull;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
  return x ^ (x >> 31);
}

World::Config::Config() {
  set("scheduler.policy", caf::atom("testing"));
  register_types(*this);
}

World::World(std::uint64_t seed) : random(seed) {
  coordinator_.clock().current_time += std::chrono::hours{1};
  began_ = coordinator_.clock().current_time;
}

World::~World() {
  before_message = [](const Delivery&) {};
  after_step = [] {};
  tasks_.clear();
  while (coordinator_.try_run_once()) {
  }
}

void World::after(Duration time, std::function<void()> task) { tasks_.emplace(coordinator_.clock().current_time + time, std::move(task)); }

void World::block(Duration time) { blocked_[running_] = coordinator_.clock().current_time + time; }

void World::note(const std::string& line) {
  if (!tracing_) return;
  if (trace_.size() == trace_lines) trace_.pop_front();
  const auto us = std::chrono::duration_cast<std::chrono::microseconds>(now()).count();
  trace_.push_back(std::to_string(us / 1000) + "." + std::to_string(1000 + us % 1000).substr(1) + " ms  " + line);
}

bool World::is_blocked(caf::resumable* job) const {
  const auto* actor = dynamic_cast<caf::abstract_actor*>(job);
  return actor && blocked_.contains(actor->id());
}

void World::deliver(std::size_t job) {
  auto& jobs = coordinator_.jobs;
  auto* const chosen = jobs[job];
  jobs.erase(jobs.begin() + static_cast<std::ptrdiff_t>(job));
  jobs.push_front(chosen);
  if (auto* const actor = dynamic_cast<caf::scheduled_actor*>(chosen)) {
    running_ = actor->id();
    if (const auto* element = actor->mailbox().peek()) {
      const Delivery delivery{*actor, element->content()};
      fingerprint_ = mix(mix(fingerprint_, actor->id()), static_cast<std::uint64_t>(now().count()));
      if (tracing_) note(std::string(actor->name()) + "#" + std::to_string(actor->id()) + " <- " + describe(delivery.content));
      before_message(delivery);
      ++num_messages_;
    }
  }
  coordinator_.run_once();
}

bool World::handle_one() {
  std::vector<std::size_t> ready;
  for (std::size_t job = 0; job < coordinator_.jobs.size(); ++job) {
    if (blocked_.empty() || !is_blocked(coordinator_.jobs[job])) ready.push_back(job);
  }
  if (ready.empty()) return false;
  deliver(ready[random.next() % ready.size()]);
  return true;
}

std::optional<caf::actor_clock::time_point> World::next_due() const {
  std::optional<caf::actor_clock::time_point> due;
  const auto consider = [&](caf::actor_clock::time_point time) {
    if (!due || time < *due) due = time;
  };
  const auto& timers = coordinator_.clock().schedule();
  if (!timers.empty()) consider(timers.begin()->first);
  if (!tasks_.empty()) consider(tasks_.begin()->first);
  for (const auto& [actor, until] : blocked_) consider(until);
  return due;
}

void World::pass_time_to(caf::actor_clock::time_point due) {
  const auto now = coordinator_.clock().current_time;
  coordinator_.advance_time(std::max(due - now, Duration{0}));
  std::erase_if(blocked_, [&](const auto& entry) { return entry.second <= due; });
  if (tasks_.empty() || tasks_.begin()->first > due) return;
  auto task = tasks_.extract(tasks_.begin());
  fingerprint_ = mix(fingerprint_, static_cast<std::uint64_t>(World::now().count()));
  task.mapped()();
}

bool World::step() {
  const auto due = next_due();
  const bool late = late_percent_ > 0 && due && *due - coordinator_.clock().current_time < longest_lateness && random.chance(late_percent_);
  if (late) {
    pass_time_to(*due);
  } else if (!handle_one()) {
    if (!due) return false;
    pass_time_to(*due);
  }
  after_step();
  return true;
}

}  // namespace troupe::sim
