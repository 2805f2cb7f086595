#pragma once

#include <caf/all.hpp>
#include <caf/scheduler/test_coordinator.hpp>
#include <chrono>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <vector>

namespace troupe::sim {

using Duration = std::chrono::nanoseconds;

/// SplitMix64: the same numbers with every standard library.
class Random {
 public:
  explicit Random(std::uint64_t seed) : state_(seed) {}
  std::uint64_t next();
  /// True in `percent` of a hundred cases.
  bool chance(int percent) { return static_cast<int>(next() % 100) < percent; }
  int between(int lowest, int highest) { return lowest + static_cast<int>(next() % static_cast<std::uint64_t>(highest - lowest + 1)); }
  Duration time(Duration shortest, Duration longest) {
    return shortest + Duration{static_cast<Duration::rep>(next() % static_cast<std::uint64_t>((longest - shortest).count() + 1))};
  }

 private:
  std::uint64_t state_;
};

/// A message that an actor is about to handle.
struct Delivery {
  caf::local_actor& receiver;
  const caf::type_erased_tuple& content;
  template <class Message>
  const Message* as() const {
    return content.match_elements<Message>() ? &content.get_as<Message>(0) : nullptr;
  }
  [[nodiscard]] bool to(std::string_view actor_name) const { return actor_name == receiver.name(); }
};

/// An actor system on one thread under virtual time. Of all actors that have mail a drawn one handles one message; when none
/// has, time jumps to what is due next. Everything follows from the seed.
class World {
 public:
  explicit World(std::uint64_t seed);
  ~World();
  World(const World&) = delete;
  World& operator=(const World&) = delete;

  caf::actor_system& system() { return system_; }
  /// Since the world began.
  [[nodiscard]] Duration now() const { return coordinator_.clock().current_time - began_; }
  void after(Duration time, std::function<void()> task);
  /// The actor whose message is being handled handles no other for that long: it blocks.
  void block(Duration time);
  /// Messages may wait up to 200 ms while time passes, as on a machine that is too busy.
  void be_late(int percent) { late_percent_ = percent; }
  /// Called before every message.
  std::function<void(const Delivery&)> before_message = [](const Delivery&) {};
  /// Called after every message and every task.
  std::function<void()> after_step = [] {};

  /// Handles one message or what is due next; false when nothing is left to happen.
  bool step();
  /// Of everything that happened so far: equal for equal seeds.
  [[nodiscard]] std::uint64_t fingerprint() const { return fingerprint_; }
  [[nodiscard]] std::uint64_t num_messages() const { return num_messages_; }
  /// Keeps the last lines of what happens.
  void keep_trace() { tracing_ = true; }
  void note(const std::string& line);
  [[nodiscard]] const std::deque<std::string>& trace() const { return trace_; }

  Random random;

 private:
  struct Config : caf::actor_system_config {
    Config();
  };
  bool handle_one();
  void deliver(std::size_t job);
  [[nodiscard]] bool is_blocked(caf::resumable* job) const;
  [[nodiscard]] std::optional<caf::actor_clock::time_point> next_due() const;
  void pass_time_to(caf::actor_clock::time_point due);

  Config config_;
  caf::actor_system system_{config_};
  caf::scheduler::test_coordinator& coordinator_ = dynamic_cast<caf::scheduler::test_coordinator&>(system_.scheduler());
  caf::actor_clock::time_point began_;
  std::multimap<caf::actor_clock::time_point, std::function<void()>> tasks_;
  std::map<caf::actor_id, caf::actor_clock::time_point> blocked_;
  caf::actor_id running_ = 0;
  int late_percent_ = 0;
  std::uint64_t fingerprint_ = 14695981039346656037ull, num_messages_ = 0;
  bool tracing_ = false;
  std::deque<std::string> trace_;
};

/// "Reported attempt 2 rank 1 index 5".
[[nodiscard]] std::string describe(const caf::type_erased_tuple& message);

}  // namespace troupe::sim
