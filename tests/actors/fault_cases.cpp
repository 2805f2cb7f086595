#include "fault_cases.hpp"

#include <troupe/file_system.hpp>
#include <troupe/pending_save.hpp>

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <memory>
#include <optional>
#include <stdexcept>
#include <thread>
#include <vector>

namespace troupe {

namespace {

using Clock = std::chrono::steady_clock;

/// Every step sums over the ranks; the report says how far the rank came.
void steps(TrainContext& context, const Config& config) {
  const auto count = config.get<std::int64_t>("steps");
  const std::chrono::milliseconds each{config.get_or<std::int64_t>("step_ms", 1)};
  if (config.has("pids")) std::ofstream{config.get<std::string>("pids"), std::ios::app} << getpid() << std::endl;
  std::int64_t bad_numbers = 0;
  const auto began = Clock::now();
  for (std::int64_t step = 1; step <= count; ++step) {
    std::this_thread::sleep_for(each);
    float value = 1;
    context.communicator().set_label("gradients");
    context.communicator().all_reduce(Buffer{&value, sizeof value, DType::F32}, ReduceOp::Sum).wait().or_throw();
    context.step_completed();
    bad_numbers += context.wants_bad_number();
    if (context.should_stop()) break;
  }
  const std::chrono::duration<double> took = Clock::now() - began;
  context.report({{"steps", count}, {"attempt", static_cast<std::int64_t>(context.attempt())}, {"bad_numbers", bad_numbers}, {"took_s", took.count()}});
}

/// Writes a file a step; reports how many could not be written and how long it took.
void files(TrainContext& context, const Config& config) {
  std::int64_t failed = 0;
  const auto began = Clock::now();
  for (std::int64_t step = 1; step <= config.get<std::int64_t>("steps"); ++step) {
    context.step_completed();
    try {
      real_file_system().write_atomically(context.checkpoint_dir() / "file", "text");
    } catch (const Failure& failure) {
      failed += failure.code() == Errc::StorageUnavailable;
    }
  }
  const std::chrono::duration<double> took = Clock::now() - began;
  context.report({{"failed", failed}, {"took_s", took.count()}});
}

/// With all of its ranks the last one throws before it has done anything in the attempts named; with fewer the others step until they are stopped.
void grows(TrainContext& context, const Config& config) {
  const bool is_whole = context.world_size() == config.get<std::int64_t>("ranks");
  const auto failing = config.get<std::vector<std::int64_t>>("fails_in");
  const bool fails = is_whole && std::ranges::count(failing, static_cast<std::int64_t>(context.attempt())) > 0;
  if (fails && context.world_rank() + 1 == context.world_size()) throw std::runtime_error{"no luck yet"};
  for (int step = 0; step < (is_whole ? 3 : 100'000) && !context.should_stop(); ++step) {
    float value = 1;
    context.communicator().all_reduce(Buffer{&value, sizeof value, DType::F32}, ReduceOp::Sum).wait().or_throw();
    std::this_thread::sleep_for(std::chrono::milliseconds{1});
    context.step_completed();
  }
  context.report({{"pid", static_cast<std::int64_t>(getpid())}, {"ranks", context.world_size()}});
}

/// A checkpoint of 64 KB a step, by rank 0.
void saves(TrainContext& context, const Config& config) {
  const std::chrono::milliseconds each{config.get_or<std::int64_t>("step_ms", 0)};
  for (std::int64_t step = 1; step <= config.get<std::int64_t>("steps"); ++step) {
    std::this_thread::sleep_for(each);
    float value = 1;
    context.communicator().all_reduce(Buffer{&value, sizeof value, DType::F32}, ReduceOp::Sum).wait().or_throw();
    if (context.world_rank() == 0) {
      std::optional<Checkpoint> checkpoint;
      try {
        const auto directory = context.checkpoint_dir();
        real_file_system().write_atomically(directory / "weights", std::string(64 << 10, static_cast<char>('a' + step)));
        checkpoint = Checkpoint{directory};
      } catch (const Failure& failure) {
        auto pending = std::make_shared<PendingSave>();
        pending->finish({failure.code(), failure.what()});
        checkpoint = Checkpoint{std::filesystem::path{config.get<std::string>("storage")} / "run" / ".staging" / "none", 1, std::move(pending)};
      }
      context.report({{"step", step}}, checkpoint);
    }
    context.step_completed();
  }
}

void terminate(TrainContext&, const Config&) {
  std::thread{[] { throw std::runtime_error{"thrown on a thread of its own"}; }}.join();
}

// Never in a loop of its own: the compiler must need the stack.
int fall(volatile int* depth) {  // NOLINT(misc-no-recursion)
  if (*depth < 0) return 0;
  volatile char room[4096];
  room[0] = static_cast<char>(*depth);
  *depth = *depth + 1;
  return fall(depth) + room[0];
}

void overflow(TrainContext&, const Config&) {
  volatile int depth = 0;
  (void)fall(&depth);
}

}  // namespace

TrainFunctions fault_cases() { return {{"steps", steps}, {"files", files}, {"grows", grows}, {"saves", saves}, {"terminate", terminate}, {"overflow", overflow}}; }

}  // namespace troupe
