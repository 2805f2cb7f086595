#pragma once

#include <coroutine>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "../../actors/rank_context.hpp"
#include "../../actors/rank_worker.hpp"
#include "simulation_storage.hpp"
#include "simulation_world.hpp"

namespace troupe::sim {

enum class Saves : std::uint8_t { RankZero, EachItsOwn, Shared };  ///< who writes a checkpoint, and into how many directories

/// The train function, as all ranks run it.
struct Training {
  std::uint64_t seed = 0;  ///< of what all ranks draw alike
  int num_steps = 5;
  int checkpoint_every = 2;
  Saves saves = Saves::RankZero;
  bool pending = false;  ///< reported before they are written
  int report_percent = 50, barrier_percent = 20;  ///< of the steps
  Duration longest_step = std::chrono::milliseconds{50};
};

/// What a rank does wrong, at its step `at` of the attempt.
struct Fate {
  enum class Kind : std::uint8_t { Fine, Throws, Hangs, ReturnsEarly, NeverStarts, StartsLate, Dies, IsSlow };
  Kind kind = Kind::Fine;
  int at = 0;
};

/// Where ranks wait for each other in collectives.
class Gathering {
 public:
  explicit Gathering(int world_size) : world_size_(world_size) {}
  void come(int rank, int step) { came_[step].insert(rank); }
  [[nodiscard]] bool complete(int step) const { return static_cast<int>(came_.at(step).size()) == world_size_; }
  void abort(const std::string& reason) {
    if (!broken_) broken_ = reason;
  }
  [[nodiscard]] const std::optional<std::string>& broken() const { return broken_; }

 private:
  int world_size_;
  std::map<int, std::set<int>> came_;  // by step
  std::optional<std::string> broken_;
};

class SimulatedRank;

/// What all ranks of a simulated driver share.
struct Stage {
  World& world;
  Disk& disk;
  Training training;
  int write_error_percent = 0;
  std::vector<std::shared_ptr<SimulatedRank>> ranks = {};  ///< that run
  std::map<std::pair<Attempt, int>, int> reports = {};     ///< sent by (attempt, rank)
  std::set<std::pair<Attempt, int>> completed = {};        ///< ranks that did all their steps
  bool fate_ended_early = false;                           ///< of the last attempt: a rank returned early, as it was to
  int placers = 0;                                         ///< alive
  std::function<void(const std::string&)> complain = [](const std::string&) {};  ///< a rank has found what must not be

  /// Steps that are done in a copy of the state; nothing when there is no whole copy.
  [[nodiscard]] std::optional<int> steps_in(const std::string& copy) const;

  /// Lets every rank go on that has what it waits for.
  void poll();
};

/// A train function that runs beside its rank's real control actor and speaks over the real RankChannel and RankContext.
class SimulatedRank : public std::enable_shared_from_this<SimulatedRank> {
 public:
  SimulatedRank(Stage& stage, RunRank order, std::shared_ptr<RankChannel> channel, std::shared_ptr<Gathering> gathering, Fate fate);

  void begin();
  void poll();
  /// Its process is gone, and all its threads with it.
  void kill();
  [[nodiscard]] bool is_over() const { return over_; }

 private:
  struct Fiber {
    struct promise_type {
      Fiber get_return_object() { return Fiber{std::coroutine_handle<promise_type>::from_promise(*this)}; }
      std::suspend_always initial_suspend() noexcept { return {}; }
      std::suspend_always final_suspend() noexcept { return {}; }
      void return_void() {}
      void unhandled_exception() { thrown = std::current_exception(); }
      std::exception_ptr thrown;
    };
    explicit Fiber(std::coroutine_handle<promise_type> begun) : handle(begun) {}
    Fiber(Fiber&& other) noexcept : handle(std::exchange(other.handle, {})) {}
    Fiber& operator=(Fiber&&) = delete;
    ~Fiber() {
      if (handle) handle.destroy();
    }
    std::coroutine_handle<promise_type> handle;
  };
  /// Waits until `ready`, which may throw what the waiting function is to see.
  struct Until {
    SimulatedRank& rank;
    std::function<bool()> ready;
    WaitingIn others = WaitingIn::Nothing;  ///< in what it waits for other ranks
    bool await_ready() { return ready(); }
    void await_suspend(std::coroutine_handle<>) {
      rank.ready_ = std::move(ready);
      rank.mark(others);
    }
    void await_resume() const {
      rank.mark(WaitingIn::Nothing);
      if (rank.thrown_) std::rethrow_exception(std::exchange(rank.thrown_, nullptr));
    }
  };

  Fiber train();
  Until until(std::function<bool()> ready, WaitingIn others = WaitingIn::Nothing) { return {*this, std::move(ready), others}; }
  void mark(WaitingIn others);
  Until pause(Duration time);
  Until gather(int step);
  Until barrier();
  void misbehave(int step);
  void report(int step);
  void report_checkpoint(int step);
  void write_part(const std::filesystem::path& directory, int step);
  void save_later(const std::filesystem::path& directory, int step, std::shared_ptr<PendingSave> save);
  [[nodiscard]] Metrics metrics(int step);
  [[nodiscard]] int first_step() const;
  void take_snapshot(int step);
  [[nodiscard]] bool all_do(int step, std::uint64_t what, int percent) const;
  void end(std::exception_ptr thrown);

  Stage& stage_;
  const RunRank order_;
  std::shared_ptr<RankChannel> channel_;
  std::shared_ptr<Gathering> gathering_;
  Fate fate_;
  RankContext context_;
  std::optional<Fiber> fiber_;
  std::function<bool()> ready_;
  std::exception_ptr thrown_;
  std::vector<std::shared_ptr<PendingSave>> saves_;
  std::uint64_t next_barrier_ = 0;
  int next_directory_ = 0, steps_done_ = 0;
  bool hangs_ = false, over_ = false;
};

/// Starts simulated train functions. `fate` of the rank; `began` is told of each.
[[nodiscard]] StartWorker simulated_worker(Stage& stage, std::shared_ptr<Gathering> gathering, Fate fate,
                                           std::function<void(std::shared_ptr<SimulatedRank>)> began = {});

}  // namespace troupe::sim
