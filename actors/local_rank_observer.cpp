#include "local_rank_observer.hpp"

#include "crash_handler.hpp"
#include "crash_report.hpp"

#include <troupe/errors.hpp>

#include <dirent.h>
#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <sstream>
#include <vector>

namespace troupe::detail {

namespace {

using Clock = std::chrono::steady_clock;

constexpr std::size_t events_of_aborted = 20, events_of_failed = 1000;

std::string read_file(const std::string& path) {
  std::ifstream file{path};
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

std::string process_path(pid_t pid) { return "/proc/" + std::to_string(pid); }

std::vector<pid_t> threads_of(pid_t pid) {
  std::vector<pid_t> threads;
  DIR* directory = opendir((process_path(pid) + "/task").c_str());
  if (!directory) return threads;
  while (const auto* entry = readdir(directory)) {
    if (const auto thread = std::atoi(entry->d_name); thread > 0) threads.push_back(thread);
  }
  closedir(directory);
  return threads;
}

/// 'R', 'S', 'D', 'T' (stopped), 't' (by a debugger), 'Z'; '?' when it is gone.
char state_of(const std::string& task) {
  const auto stat = read_file(task + "/stat");
  const auto end = stat.rfind(')');  // a thread's name may hold anything
  return end == std::string::npos || end + 2 >= stat.size() ? '?' : stat[end + 2];
}

const char* name_of(char state) {
  switch (state) {
    case 'R': return "runs";
    case 'S': return "sleeps";
    case 'D': return "waits in the kernel and cannot be interrupted (a disk, a device driver?)";
    case 'T': return "is stopped (SIGSTOP)";
    case 't': return "is stopped by a debugger";
    case 'Z': return "has ended";
    default: return "is gone";
  }
}

std::string line_of(std::string text) {
  text = text.substr(0, text.find('\n'));
  return text;
}

std::uint32_t num_ready(const BlackBox& box) {
  std::uint32_t ready = 0;
  for (const auto& stack : box.stacks) ready += stack.ready.load();
  return ready;
}

/// What the kernel tells of a process that does not speak for itself.
std::string kernel_view(pid_t pid) {
  std::string text = "process " + std::to_string(pid) + " " + name_of(state_of(process_path(pid))) + "; its threads:\n";
  for (const auto thread : threads_of(pid)) {
    const auto task = process_path(pid) + "/task/" + std::to_string(thread);
    const auto state = state_of(task);
    text += "  thread " + std::to_string(thread) + " '" + line_of(read_file(task + "/comm")) + "' " + name_of(state);
    if (const auto where = line_of(read_file(task + "/wchan")); !where.empty() && where != "0") text += ", in " + where;
    text += "\n";
  }
  std::istringstream status{read_file(process_path(pid) + "/status")};
  for (std::string line; std::getline(status, line);) {
    if (line.starts_with("VmRSS") || line.starts_with("VmSwap")) text += "  " + line + "\n";
  }
  return text;
}

}  // namespace

LocalRankObserver::LocalRankObserver() {
  try {
    memory_ = BlackBoxMemory::to_share();
  } catch (const Failure&) {
    return;  // out of descriptors or memory: the start itself says so
  }
}

void LocalRankObserver::began(pid_t pid) {
  auto kills = memory_kills();
  const std::lock_guard lock{mutex_};
  pid_ = known_pid_ = pid;
  kills_before_ = std::move(kills);
}

void LocalRankObserver::ending() {
  const std::lock_guard lock{mutex_};
  pid_ = 0;
}

bool LocalRankObserver::is_of(std::uint64_t attempt) const noexcept { return memory_ && memory_->box().attempt.load() == attempt; }

std::optional<RankBeat> LocalRankObserver::beat(std::uint64_t attempt) {
  if (!is_of(attempt)) return std::nullopt;
  auto beat = beat_of(memory_->box());
  const std::lock_guard lock{mutex_};
  // Only of one that does not get on: the look costs 20 us.
  if (std::exchange(last_progress_, beat.progress) == beat.progress && pid_ != 0) {
    const auto state = state_of(process_path(pid_));
    beat.is_stopped = state == 'T' || state == 't';
  }
  return beat;
}

bool LocalRankObserver::ask_stacks() {
  const std::lock_guard lock{mutex_};
  if (!memory_ || pid_ == 0 || memory_->box().training_thread.load() == 0) return false;
  auto& box = memory_->box();
  for (auto& stack : box.stacks) stack.ready.store(0);
  box.next_stack.store(0);
  num_asked_ = 0;
  const auto ask = [&](pid_t thread) { num_asked_ += syscall(SYS_tgkill, pid_, thread, stack_signal()) == 0; };
  const auto trains = box.training_thread.load();
  ask(trains);
  for (const auto thread : threads_of(pid_)) {
    if (thread != trains && num_asked_ < BlackBox::max_stacks) ask(thread);
  }
  return num_asked_ > 0;
}

bool LocalRankObserver::have_stacks() const noexcept {
  const std::lock_guard lock{mutex_};
  return !memory_ || num_ready(memory_->box()) >= num_asked_;
}

std::string LocalRankObserver::stacks_told() {
  const std::lock_guard lock{mutex_};
  if (!memory_ || pid_ == 0) return {};
  const auto& box = memory_->box();
  auto text = stacks_text(box, read_file(process_path(pid_) + "/maps"));
  const auto ready = num_ready(box);
  if (ready < num_asked_ || num_asked_ == 0) {
    text += std::string(ready == 0 ? "its threads wrote no stacks" : "not all threads wrote their stacks") + "; the kernel says:\n" + kernel_view(pid_);
  }
  return text;
}

void LocalRankObserver::complete(RunError& error, std::uint64_t attempt, bool was_ours) const {
  const std::lock_guard lock{mutex_};
  if (known_pid_ != 0 && !error.pid) error.pid = known_pid_;
  if (error.code == Errc::RankKilled && error.signal == SIGKILL && !was_ours) {
    if (const auto verdict = memory_verdict(kills_before_, memory_kills()); !verdict.empty()) {
      error.code = Errc::OutOfMemory;
      error.message += ", " + verdict;
    }
  }
  if (!memory_) return;
  const auto& box = memory_->box();
  if (const auto crash = crash_text(box); !crash.empty() && error.signal) {
    error.message += ": " + crash_reason(box);
    error.details += crash;
  }
  if (!is_of(attempt)) return;
  if (!error.step) error.step = box.steps.load();
  if (error.details.find("last events of rank") != std::string::npos) return;  // told by the rank itself
  const auto most = error.code == Errc::Aborted ? events_of_aborted : events_of_failed;
  error.details += "last events of rank " + std::to_string(box.rank.load()) + ":\n" + events_text(box, Clock::now(), most);
}

}  // namespace troupe::detail
