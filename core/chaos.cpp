#include <troupe/chaos.hpp>

#include <troupe/errors.hpp>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <numeric>

namespace troupe {

namespace {

struct Named {
  std::string_view name, explained;
  bool takes_process;
};

constexpr std::array<Named, num_chaos_kinds> kinds{{
    {"throw", "the train function throws", false},
    {"exit", "exit:CODE    the process ends with this exit code (default 3)", true},
    {"kill", "SIGKILL to the process", true},
    {"stop", "SIGSTOP to the process: it is there and does nothing", true},
    {"segv", "a write to an address where nothing is", true},
    {"abort", "std::abort", true},
    {"oom", "oom:SIZE     takes memory until it is killed; at SIZE (as 512M) it throws std::bad_alloc", true},
    {"hang", "never comes back from the step", false},
    {"wrong-collective", "calls a collective that nobody else calls", false},
    {"slow", "slow:TIME    the step takes so much longer (as 50ms, 2s)", false},
    {"nan", "the next gradients of an Accelerator have a NaN in them", false},
    {"storage-slow", "storage-slow:TIME  each write of a checkpoint file takes so much longer from here on", false},
    {"storage-fail", "storage-fail:N     the next N writes of checkpoint files fail (default 1)", false},
    {"driver-kill", "SIGKILL to the process that called fit()", false},
}};

const Named& of(ChaosKind kind) noexcept { return kinds[static_cast<std::size_t>(kind)]; }

// Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014.
std::uint64_t mix(std::uint64_t value) noexcept {
  value += 0x9E3779B97F4A7C15ULL;
  value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9ULL;
  value = (value ^ (value >> 27)) * 0x94D049BB133111EBULL;
  return value ^ (value >> 31);
}

std::string join(const std::vector<int>& ranks) {
  std::string text;
  for (const int rank : ranks) text += (text.empty() ? "" : ", ") + std::to_string(rank);
  return (ranks.size() == 1 ? "rank " : "ranks ") + text;
}

}  // namespace

std::string_view name(ChaosKind kind) noexcept { return of(kind).name; }
std::string_view explain(ChaosKind kind) noexcept { return of(kind).explained; }
bool takes_the_process(ChaosKind kind) noexcept { return of(kind).takes_process; }

std::string describe(const ChaosStrike& strike) {
  std::string text{name(strike.kind)};
  switch (strike.kind) {
    case ChaosKind::Exit:
    case ChaosKind::StorageFail: return text + ":" + std::to_string(strike.value);
    case ChaosKind::Slow:
    case ChaosKind::StorageSlow: return text + ":" + std::to_string(strike.value) + "ms";
    case ChaosKind::Oom: return text + ":" + std::to_string(strike.value >> 20) + "M";
    default: return text;
  }
}

ChaosPlan::Drawn ChaosPlan::draw(std::size_t index, int world_size, std::uint64_t attempt) const {
  const auto& fault = faults_[index];
  auto state = mix(mix(seed_ + index) + attempt);
  const auto below = [&](std::uint64_t count) { return (state = mix(state)) % count; };
  Drawn drawn;
  drawn.ranks = fault.ranks;
  if (fault.whose == ChaosFault::Ranks::All) {
    drawn.ranks.resize(static_cast<std::size_t>(world_size));
    std::iota(drawn.ranks.begin(), drawn.ranks.end(), 0);
  } else if (fault.whose == ChaosFault::Ranks::Any) {
    drawn.ranks = {static_cast<int>(below(static_cast<std::uint64_t>(world_size)))};
  }
  drawn.step = fault.when == ChaosFault::Steps::Between ? fault.first + below(fault.last - fault.first + 1) : fault.first;
  drawn.strike = fault.kinds[fault.kinds.size() == 1 ? 0 : below(fault.kinds.size())];
  return drawn;
}

std::vector<ChaosStrike> ChaosPlan::due(int rank, int world_size, std::uint64_t attempt, std::uint64_t step) const {
  std::vector<ChaosStrike> strikes;
  for (std::size_t i = 0; i < faults_.size(); ++i) {
    const auto& fault = faults_[i];
    if (fault.attempt && *fault.attempt != attempt) continue;
    const bool every = fault.when == ChaosFault::Steps::Every;
    if (every ? step % fault.first != 0 : step < fault.first || step > fault.last) continue;
    const auto drawn = draw(i, world_size, attempt);
    if (!every && step != drawn.step) continue;
    if (std::binary_search(drawn.ranks.begin(), drawn.ranks.end(), rank)) strikes.push_back(drawn.strike);
  }
  return strikes;
}

std::vector<std::string> ChaosPlan::preview(int world_size, std::uint64_t attempt) const {
  std::vector<std::string> lines;
  for (std::size_t i = 0; i < faults_.size(); ++i) {
    const auto& fault = faults_[i];
    if (fault.attempt && *fault.attempt != attempt) continue;
    const auto drawn = draw(i, world_size, attempt);
    const bool every = fault.when == ChaosFault::Steps::Every;
    lines.push_back(join(drawn.ranks) + (every ? ", every step that divides by " : ", step ") + std::to_string(drawn.step) + ": " +
                    describe(drawn.strike));
  }
  return lines;
}

void validate(const ChaosPlan& plan, const ScalingConfig& scaling) {
  for (const auto& fault : plan.faults()) {
    for (const int rank : fault.ranks) {
      if (rank < scaling.num_workers) continue;
      throw Failure{Errc::InvalidConfig, "chaos: '" + fault.text + "' is for rank " + std::to_string(rank) + ", but there are " +
                                             std::to_string(scaling.num_workers) + " ranks, from 0"};
    }
    for (const auto& strike : fault.kinds) {
      if (scaling.placement != Placement::Threads || !takes_the_process(strike.kind)) continue;
      throw Failure{Errc::InvalidConfig, "chaos: '" + fault.text + "' would end the whole program, because ranks are threads of it; use " +
                                             "ScalingConfig.placement = Processes, or kind=throw"};
    }
  }
}

std::string chaos_in_force(const std::string& configured) {
  const char* forced = std::getenv("TROUPE_CHAOS");
  return forced ? forced : configured;
}

}  // namespace troupe
