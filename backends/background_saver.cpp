#include "background_saver.hpp"

#include <troupe/errors.hpp>

#include <pthread.h>
#include <sys/resource.h>
#include <unistd.h>

#include <exception>
#include <utility>

namespace troupe::detail {

namespace {

using Clock = std::chrono::steady_clock;

/// Where a rank's step and its save want the same core, the step gets most of it.
constexpr int niceness = 10;
/// At the end ranks come within this of each other; after a failure maybe never.
constexpr std::chrono::seconds patience_in_order{60}, patience_after_failure{2};

Outcome outcome_of(const std::exception_ptr& error) {
  try {
    std::rethrow_exception(error);
  } catch (const Failure& failure) {
    return {failure.code(), failure.what()};
  } catch (const std::exception& other) {
    return {Errc::StorageUnavailable, other.what()};
  } catch (...) {
    return {Errc::Internal, "something that is no std::exception was thrown by a save"};
  }
}

}  // namespace

BackgroundSaver::BackgroundSaver() = default;

BackgroundSaver::~BackgroundSaver() {
  {
    const std::scoped_lock lock{mutex_};
    end_ = true;
    patience_ = Clock::now() + (std::uncaught_exceptions() > 0 ? patience_after_failure : patience_in_order);
    changed_.notify_all();
  }
  if (thread_.joinable()) thread_.join();
}

bool BackgroundSaver::busy() const {
  const std::scoped_lock lock{mutex_};
  return saving_;
}

void BackgroundSaver::wait() const {
  std::unique_lock lock{mutex_};
  changed_.wait(lock, [this] { return !running_; });
}

bool BackgroundSaver::stopping() const {
  const std::scoped_lock lock{mutex_};
  return end_ && Clock::now() >= patience_;
}

void BackgroundSaver::submit(std::function<void()> job) {
  std::unique_lock lock{mutex_};
  changed_.wait(lock, [this] { return !running_; });
  job_ = std::move(job);
  running_ = true;
  if (!thread_.joinable()) thread_ = std::thread{[this] { work(); }};
  changed_.notify_all();
}

void BackgroundSaver::work() {
  pthread_setname_np(pthread_self(), "troupe-save");
  ::setpriority(PRIO_PROCESS, static_cast<id_t>(::gettid()), niceness);  // of this thread only, on Linux
  std::unique_lock lock{mutex_};
  for (;;) {
    changed_.wait(lock, [this] { return end_ || job_; });
    if (!job_) return;
    auto job = std::exchange(job_, nullptr);
    lock.unlock();
    job();
    job = nullptr;  // its snapshot's memory is free before anyone may take some
    lock.lock();
    running_ = false;
    changed_.notify_all();
  }
}

void BackgroundSaver::reserve(std::size_t bytes) {
  submit([this, bytes] {
    try {
      pool_.reserve(bytes);
    } catch (const std::exception&) {
      // The first save takes it, or says why it cannot.
    }
  });
}

std::shared_ptr<PendingSave> BackgroundSaver::start(const CheckpointPart& part, Write write, Ended ended) {
  wait();
  auto snapshot = std::make_shared<PartSnapshot>(part, pool_);
  auto pending = std::make_shared<PendingSave>();
  {
    const std::scoped_lock lock{mutex_};
    saving_ = true;
  }
  submit([this, snapshot = std::move(snapshot), pending, write = std::move(write), ended = std::move(ended)]() mutable {
    Outcome outcome;
    try {
      write(*snapshot);
    } catch (...) {
      outcome = outcome_of(std::current_exception());
    }
    snapshot.reset();
    {
      const std::scoped_lock lock{mutex_};
      saving_ = false;
    }
    ended(outcome);
    pending->finish(std::move(outcome));
  });
  return pending;
}

}  // namespace troupe::detail
