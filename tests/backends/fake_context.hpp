#pragma once

#include <troupe/errors.hpp>
#include <troupe/local_groups.hpp>
#include <troupe/train_context.hpp>

#include <exception>
#include <functional>
#include <memory>
#include <thread>
#include <utility>
#include <vector>

namespace troupe::test {

/// A context with a communicator and, if given, a directory, and nothing else behind it. Also the context of bench/ddp_bench.cpp.
class FakeContext : public TrainContext {
 public:
  /// @param storage where `shared_checkpoint_dir` makes directories; empty: nowhere.
  /// @param snapshots where copies of the state are kept, and how often; none.
  explicit FakeContext(Communicator& communicator, std::filesystem::path storage = {}, SnapshotOptions snapshots = {})
      : communicator_(communicator), storage_(std::move(storage)), snapshots_(std::move(snapshots)) {}
  int world_rank() const noexcept override { return communicator_.rank(); }
  int world_size() const noexcept override { return communicator_.size(); }
  int local_rank() const noexcept override { return world_rank(); }
  int local_world_size() const noexcept override { return world_size(); }
  int node_rank() const noexcept override { return 0; }
  std::uint64_t attempt() const noexcept override { return 1; }
  Device device() const noexcept override { return {}; }
  const ScalingConfig& scaling() const noexcept override { return scaling_; }
  std::string run_name() const override { return "fake"; }
  void report(const Metrics&, const std::optional<Checkpoint>&) override { ++reports_; }
  void step_completed() override { ++steps_completed; }
  bool wants_bad_number() noexcept override { return std::exchange(bad_number, false); }
  SnapshotOptions snapshots() const override { return snapshots_; }
  std::uint64_t reports() const noexcept override { return reports_; }
  void progress(const Progress&) override {}
  std::filesystem::path checkpoint_dir() override { throw Failure{Errc::Unsupported, "a FakeContext has no storage"}; }
  std::filesystem::path shared_checkpoint_dir() override {
    if (storage_.empty()) return checkpoint_dir();
    auto directory = storage_ / ("shared_" + std::to_string(next_directory_++));
    std::filesystem::create_directories(directory);
    return directory;
  }
  std::optional<Checkpoint> get_checkpoint() const override { return std::nullopt; }
  void barrier() override { communicator_.barrier().wait().or_throw(); }
  std::string broadcast_from_rank_zero(std::string bytes) override { return bytes; }
  bool should_stop() const noexcept override { return false; }
  Communicator& communicator() override { return communicator_; }

  int steps_completed = 0;
  bool bad_number = false;  ///< what `wants_bad_number` says once

 private:
  Communicator& communicator_;
  ScalingConfig scaling_;
  std::filesystem::path storage_;
  SnapshotOptions snapshots_;
  std::uint64_t reports_ = 0;
  int next_directory_ = 0;
};

/// Runs `body` as every rank of a world of `size` threads (the calling one when it is 1). A rank that throws aborts
/// the group; the first one's exception is thrown here.
inline void run_ranks(int size, const std::function<void(TrainContext&)>& body, const std::filesystem::path& storage = {},
                      const SnapshotOptions& snapshots = {}) {
  if (size == 1) {
    auto self = self_communicator();
    FakeContext context{*self, storage, snapshots};
    return body(context);
  }
  auto seats = make_thread_group(size, std::chrono::seconds{20});
  std::vector<std::exception_ptr> errors(seats.size());
  std::vector<std::thread> threads;
  for (std::size_t r = 0; r < seats.size(); ++r) {
    threads.emplace_back([&, r] {
      try {
        FakeContext context{*seats[r], storage, snapshots};
        body(context);
      } catch (const std::exception& error) {
        errors[r] = std::current_exception();
        seats[r]->abort(error.what());
      }
    });
  }
  for (auto& thread : threads) thread.join();
  std::exception_ptr first;
  for (const auto& error : errors) {
    if (!error) continue;
    if (!first) first = error;
    try {
      std::rethrow_exception(error);
    } catch (const Failure& failure) {
      if (failure.code() != Errc::Aborted) std::rethrow_exception(error);  // the cause, not its echo
    } catch (...) {
      std::rethrow_exception(error);
    }
  }
  if (first) std::rethrow_exception(first);
}

}  // namespace troupe::test
