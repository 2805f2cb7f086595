#include "rank_chaos.hpp"

#include <troupe/storage_faults.hpp>

#include <signal.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <thread>
#include <vector>

namespace troupe {

namespace {

using std::chrono::milliseconds;

constexpr std::size_t oom_block_bytes = std::size_t{16} << 20;

// Touches what it takes, else the kernel gives nothing.
[[noreturn]] void take_memory(std::int64_t cap) {
  std::vector<std::unique_ptr<char[]>> taken;
  for (std::int64_t bytes = 0; bytes < cap; bytes += oom_block_bytes) {
    taken.emplace_back(new char[oom_block_bytes]);
    std::memset(taken.back().get(), 1, oom_block_bytes);
  }
  throw std::bad_alloc{};
}

void write_where_nothing_is() {
  volatile std::uintptr_t address = 0x2a0;  // the compiler must not see that it cannot be
  *reinterpret_cast<volatile int*>(address) = 1;
}

}  // namespace

RankChaos::RankChaos(const RunRank& run, BlackBox* box)
    : plan_(parse_chaos(run.chaos)), rank_(run.rank), world_size_(run.world_size), attempt_(run.attempt), placement_(run.scaling.placement), box_(box) {
  slow_storage(milliseconds{0});
  fail_storage(0);
}

void RankChaos::strike(std::uint64_t step, Communicator& seat) {
  for (const auto& strike : plan_.due(rank_, world_size_, attempt_, step)) carry_out(strike, step, seat);
}

void RankChaos::carry_out(const ChaosStrike& strike, std::uint64_t step, Communicator& seat) {
  const auto what = "chaos: " + describe(strike) + " on rank " + std::to_string(rank_) + " at step " + std::to_string(step);
  if (strike.kind != ChaosKind::Slow) std::fprintf(stderr, "%s\n", what.c_str());  // a slow rank would say it each step
  if (box_) box_->note(EventKind::Chaos, step, name(strike.kind), {}, std::chrono::steady_clock::now());
  switch (strike.kind) {
    case ChaosKind::Throw: throw Failure{Errc::TrainFunctionFailed, what};
    case ChaosKind::Exit: _exit(static_cast<int>(strike.value));
    case ChaosKind::Kill: kill(getpid(), SIGKILL); break;
    case ChaosKind::Stop: kill(getpid(), SIGSTOP); break;
    case ChaosKind::Segv: write_where_nothing_is(); break;
    case ChaosKind::Abort: std::abort();
    case ChaosKind::Oom: take_memory(strike.value);
    case ChaosKind::Hang:
      for (;;) std::this_thread::sleep_for(milliseconds{10});
    case ChaosKind::WrongCollective: {
      std::uint8_t byte = 0;
      seat.broadcast(Buffer{&byte, 1, DType::U8}, 0).wait().or_throw();
      break;
    }
    case ChaosKind::Slow: std::this_thread::sleep_for(milliseconds{strike.value}); break;
    case ChaosKind::Nan: bad_number_ = true; break;
    case ChaosKind::StorageSlow: slow_storage(milliseconds{strike.value}); break;
    case ChaosKind::StorageFail: fail_storage(strike.value); break;
    case ChaosKind::DriverKill: kill(placement_ == Placement::Threads ? getpid() : getppid(), SIGKILL); break;
  }
}

}  // namespace troupe
