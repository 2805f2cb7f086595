#pragma once

#include <troupe/run_options.hpp>

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

// Faults on purpose: what to break, on which rank, at which step. Plain values and functions; ranks carry them out
// (actors/rank_chaos.hpp). The text is `RunConfig::chaos`, or TROUPE_CHAOS, which goes first: docs/supervision.md.

namespace troupe {

enum class ChaosKind : std::uint8_t {
  Throw,            ///< the train function throws
  Exit,             ///< its process ends with an exit code
  Kill,             ///< SIGKILL
  Stop,             ///< SIGSTOP: the process is there and does nothing, its control actor neither
  Segv,             ///< a write to an address where nothing is
  Abort,            ///< std::abort
  Oom,              ///< takes memory until it is killed, or the cap is reached: std::bad_alloc then
  Hang,             ///< never comes back from the step
  WrongCollective,  ///< a collective that nobody else calls
  Slow,             ///< the step takes so much longer
  Nan,              ///< `TrainContext::wants_bad_number` is true once
  StorageSlow,      ///< each write and sync of a checkpoint file of this process takes so much longer from here on
  StorageFail,      ///< the next so many writes of checkpoint files of this process fail
  DriverKill,       ///< SIGKILL to the process of the Trainer
};
inline constexpr int num_chaos_kinds = 14;

/// "wrong-collective"
[[nodiscard]] std::string_view name(ChaosKind kind) noexcept;
/// One line on what it does and the argument it takes, for `troupe chaos --list`.
[[nodiscard]] std::string_view explain(ChaosKind kind) noexcept;
/// Whether it ends or stops the whole process, and so cannot strike ranks that are threads of the driver.
[[nodiscard]] bool takes_the_process(ChaosKind kind) noexcept;

/// One fault that strikes now. `value`: of Exit the code, of Slow and StorageSlow milliseconds, of Oom bytes, of StorageFail
/// how many writes; else 0.
struct ChaosStrike {
  ChaosKind kind = ChaosKind::Throw;
  std::int64_t value = 0;
  bool operator==(const ChaosStrike&) const = default;
};

/// "slow:50ms"
[[nodiscard]] std::string describe(const ChaosStrike& strike);

struct ChaosFault {
  enum class Ranks : std::uint8_t { Listed, All, Any };     ///< Any: one, drawn
  enum class Steps : std::uint8_t { At, Between, Every };   ///< Between: one of first…last, drawn
  Ranks whose = Ranks::All;
  std::vector<int> ranks;
  Steps when = Steps::At;
  std::uint64_t first = 1, last = 1;        ///< At: first; Every: each multiple of first
  std::optional<std::uint64_t> attempt{1};  ///< nothing: every one
  std::vector<ChaosStrike> kinds;           ///< several: one is drawn
  std::string text;                         ///< as it was written
};

/// What is to break in a run. Always the same for the same text: what is drawn follows from the seed, the fault's place in the
/// text and the attempt.
class ChaosPlan {
 public:
  ChaosPlan() = default;
  ChaosPlan(std::vector<ChaosFault> faults, std::uint64_t seed) : faults_(std::move(faults)), seed_(seed) {}

  [[nodiscard]] bool empty() const noexcept { return faults_.empty(); }
  [[nodiscard]] const std::vector<ChaosFault>& faults() const noexcept { return faults_; }
  [[nodiscard]] std::uint64_t seed() const noexcept { return seed_; }

  /// What strikes `rank` of `world_size` when it completes step `step` (from 1, counted anew in every attempt), in the text's
  /// order. A fault that is not Every strikes once in an attempt.
  [[nodiscard]] std::vector<ChaosStrike> due(int rank, int world_size, std::uint64_t attempt, std::uint64_t step) const;
  /// Which faults strike a rank in this attempt at all, one line each, what is drawn filled in: "rank 1, step 5: kill".
  [[nodiscard]] std::vector<std::string> preview(int world_size, std::uint64_t attempt) const;

 private:
  struct Drawn {
    std::vector<int> ranks;  ///< ascending
    std::uint64_t step = 1;
    ChaosStrike strike;
  };
  [[nodiscard]] Drawn draw(std::size_t fault, int world_size, std::uint64_t attempt) const;

  std::vector<ChaosFault> faults_;
  std::uint64_t seed_ = 0;
};

/// Reads "rank=1 step=5 kind=kill; rank=* step=every:20 kind=slow:50ms; seed=7": faults separated by ';', each of
///   rank=N | N,M,… | * | any       (default *)
///   step=N | N..M | every:N        (of the attempt, from 1; N..M: one of these, drawn)
///   kind=K | K|K|…                 (several: one is drawn), K as `troupe chaos --list` has them
///   attempt=N | *                  (default 1)
/// An empty text is an empty plan. Throws Failure{InvalidConfig} naming the fault, the word and what is allowed.
[[nodiscard]] ChaosPlan parse_chaos(const std::string& text);

/// Throws Failure{InvalidConfig} when a fault names a rank that there is not, or would take the driver with it: ranks that are
/// threads cannot be killed one by one.
void validate(const ChaosPlan& plan, const ScalingConfig& scaling);

/// `configured`, unless TROUPE_CHAOS is set: that then, also when it is empty.
[[nodiscard]] std::string chaos_in_force(const std::string& configured);

}  // namespace troupe
