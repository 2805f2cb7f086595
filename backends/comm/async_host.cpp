#include "host_stream.hpp"
#include "request.hpp"
#include "task_thread.hpp"

#include <troupe/async_host.hpp>

#include <atomic>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <numeric>
#include <random>
#include <thread>
#include <vector>

namespace troupe {

namespace {

class ThreadEvent final : public Event, public std::enable_shared_from_this<ThreadEvent> {
 public:
  bool query() const override {
    const std::lock_guard lock{mutex_};
    return passed_;
  }
  void synchronize() const override {
    std::unique_lock lock{mutex_};
    changed_.wait(lock, [this] { return passed_; });
  }
  void pass() {
    const std::lock_guard lock{mutex_};
    passed_ = true;
    changed_.notify_all();
  }

 private:
  mutable std::mutex mutex_;
  mutable std::condition_variable changed_;
  bool passed_ = false;
};

class ThreadStream final : public Stream {
 public:
  ThreadStream(std::chrono::microseconds max_delay, std::uint64_t seed) : delay_(0, max_delay.count()), random_(seed) {}

  std::shared_ptr<const Event> record() override {
    auto event = std::make_shared<ThreadEvent>();
    thread_.push([event] { event->pass(); });
    return event;
  }
  void wait(const Event& event) override {
    if (event.query()) return;
    const auto* known = dynamic_cast<const ThreadEvent*>(&event);
    if (!known) throw Failure{Errc::InvalidArgument, "a stream of async_host was asked to wait for another runtime's event"};
    thread_.push([event = known->shared_from_this()] { event->synchronize(); });
  }
  void copy_async(void* to, const void* from, std::size_t bytes) override {
    run([=] { detail::HostStream{}.copy_async(to, from, bytes); });
  }
  void fill_async(void* to, std::uint8_t value, std::size_t bytes) override {
    run([=] { detail::HostStream{}.fill_async(to, value, bytes); });
  }
  /// Does `task` after a delay.
  void run(std::function<void()> task) {
    thread_.push([this, task = std::move(task)] {
      std::this_thread::sleep_for(std::chrono::microseconds{delay_(random_)});
      task();
    });
  }

 private:
  std::uniform_int_distribution<std::int64_t> delay_;  // the thread's, like the next
  std::mt19937_64 random_;
  detail::TaskThread thread_;  // last: it uses the rest
};

class AsyncHostRuntime final : public DeviceRuntime {
 public:
  explicit AsyncHostRuntime(const AsyncHost& options) : options_(options), next_seed_(options.seed) {}
  std::string name() const override { return "async_host"; }
  Device device() const noexcept override { return {}; }
  bool has_own_memory() const noexcept override { return true; }
  std::unique_ptr<Stream> create_stream() override { return std::make_unique<ThreadStream>(options_.max_delay, next_seed_++); }
  Stream& compute_stream() override { return compute_; }
  std::shared_ptr<void> allocate(std::size_t bytes) override { return detail::allocate_from_heap(bytes); }
  std::shared_ptr<void> allocate_pinned(std::size_t bytes) override { return detail::allocate_from_heap(bytes); }

 private:
  AsyncHost options_;
  std::atomic<std::uint64_t> next_seed_;
  detail::HostStream compute_;
};

/// A collective that a stream does.
class StreamWork final : public Work::State {
 public:
  StreamWork(std::shared_ptr<const Event> event, std::shared_ptr<Outcome> outcome) : event_(std::move(event)), outcome_(std::move(outcome)) {}
  bool poll() override { return event_->query(); }
  Outcome wait() override {
    event_->synchronize();
    return *outcome_;
  }
  std::shared_ptr<const Event> event() override { return event_; }

 private:
  std::shared_ptr<const Event> event_;
  std::shared_ptr<Outcome> outcome_;  // written before the event passes
};

class StreamCommunicator final : public detail::CommunicatorDecorator {
 public:
  StreamCommunicator(std::unique_ptr<Communicator> group, DeviceRuntime& runtime, std::unique_ptr<Stream> stream)
      : CommunicatorDecorator(std::move(group)), runtime_(runtime), stream_(std::move(stream)), thread_(dynamic_cast<ThreadStream*>(stream_.get())) {
    if (!thread_) throw Failure{Errc::InvalidArgument, "on_stream: " + runtime.name() + " is not the runtime of async_host_runtime"};
    std::vector<int> ranks(static_cast<std::size_t>(size()));
    std::iota(ranks.begin(), ranks.end(), 0);
    recorder_ = std::make_unique<FlightRecorder>("async_host", rank(), std::move(ranks));
  }

  std::unique_ptr<Communicator> split(int color) override {
    stream_->synchronize();
    return on_stream(group().split(color), runtime_);
  }
  void set_timeout(std::chrono::milliseconds timeout) override {
    stream_->synchronize();
    group().set_timeout(timeout);
  }
  /// Of calls; the group's own is the stream's to write.
  FlightRecorder& recorder() noexcept override { return *recorder_; }

 protected:
  Work post(const detail::Request& request) override {
    const auto sequence = recorder_->post(request.collective(), std::chrono::steady_clock::now());
    stream_->wait(*runtime_.compute_stream().record());
    auto outcome = std::make_shared<Outcome>();
    thread_->run([this, request, sequence, outcome, label = recorder_->label().text()] {
      try {
        group().set_label(label);
        *outcome = detail::perform(group(), request).wait();
      } catch (const Failure& failure) {
        *outcome = {failure.code(), failure.what()};
      }
      recorder_->finish(sequence, outcome->code(), std::chrono::steady_clock::now());
    });
    return Work{std::make_shared<StreamWork>(stream_->record(), outcome)};
  }

 private:
  DeviceRuntime& runtime_;
  std::unique_ptr<FlightRecorder> recorder_;
  std::unique_ptr<Stream> stream_;  // last but one: waits for its work
  ThreadStream* thread_;
};

}  // namespace

std::unique_ptr<DeviceRuntime> async_host_runtime(const AsyncHost& options) { return std::make_unique<AsyncHostRuntime>(options); }

std::unique_ptr<Communicator> on_stream(std::unique_ptr<Communicator> group, DeviceRuntime& runtime) {
  return std::make_unique<StreamCommunicator>(std::move(group), runtime, runtime.create_stream());
}

}  // namespace troupe
