#include "request.hpp"

#include <troupe/delayed_communicator.hpp>

#include <random>
#include <thread>

namespace troupe {

namespace {

using Clock = std::chrono::steady_clock;

/// When the wire is done with what was sent.
class Line {
 public:
  explicit Line(const Wire& wire) : wire_(wire), random_(wire.seed) {}

  Clock::time_point send(std::uint64_t bytes) {
    std::chrono::duration<double> time{0};
    if (wire_.bytes_per_second > 0) time = std::chrono::duration<double>{static_cast<double>(bytes) / wire_.bytes_per_second};
    free_ = std::max(free_, Clock::now()) + std::chrono::duration_cast<Clock::duration>(time);
    std::uniform_int_distribution<std::int64_t> jitter{0, wire_.jitter.count()};
    return free_ + wire_.latency + std::chrono::nanoseconds{jitter(random_)};
  }

 private:
  Wire wire_;
  std::mt19937_64 random_;
  Clock::time_point free_{};
};

class Delayed final : public Work::State {
 public:
  Delayed(Work work, Clock::time_point arrival) : work_(std::move(work)), arrival_(arrival) {}
  bool poll() override { return work_.poll() && (Clock::now() >= arrival_ || !work_.wait().ok()); }
  Outcome wait() override {
    auto outcome = work_.wait();
    if (outcome.ok()) std::this_thread::sleep_until(arrival_);
    return outcome;
  }

 private:
  Work work_;
  Clock::time_point arrival_;
};

class DelayedCommunicator final : public detail::CommunicatorDecorator {
 public:
  DelayedCommunicator(std::unique_ptr<Communicator> group, std::shared_ptr<Line> line)
      : CommunicatorDecorator(std::move(group)), line_(std::move(line)) {}
  std::unique_ptr<Communicator> split(int color) override {
    return std::make_unique<DelayedCommunicator>(group().split(color), line_);
  }

 protected:
  Work post(const detail::Request& request) override {
    const auto arrival = line_->send(sent_bytes(request.collective(), size()));
    return Work{std::make_shared<Delayed>(detail::perform(group(), request), arrival)};
  }

 private:
  std::shared_ptr<Line> line_;
};

}  // namespace

std::unique_ptr<Communicator> delayed_communicator(std::unique_ptr<Communicator> group, const Wire& wire) {
  return std::make_unique<DelayedCommunicator>(std::move(group), std::make_shared<Line>(wire));
}

}  // namespace troupe
