#pragma once

#include <troupe/local_groups.hpp>

#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

/// Runs bodies on the ranks of a group, whatever the ranks are. A process rank is this program started again, so a
/// body is known by name; it reports by throwing.
namespace troupe::testing_ranks {

using Body = void (*)(Communicator& group, const std::string& argument);
/// Takes a seat in a rank: `place` is what the driver handed over.
using Join = std::function<std::unique_ptr<Communicator>(const std::string& place, int rank, int size, std::chrono::milliseconds timeout)>;

struct Registry {
  std::map<std::string, Body> bodies;
  std::map<std::string, Join> joins;  ///< by implementation; "threads" needs none
  std::set<std::string> on_threads;   ///< implementations whose ranks are threads, which join like processes
};
[[nodiscard]] Registry& registry();

struct RankResult {
  std::string text;   ///< what the body printed by `say`, then what it threw
  bool ok = false;    ///< returned, and its process ended with 0
  int signal = 0;
};

/// Line of text for the driver; process ranks write it at once.
void say(const std::string& line);

class Ranks {
 public:
  /// Starts `body` on every rank. `place` is for implementations other than threads and shared_memory.
  Ranks(const std::string& implementation, int size, const std::string& body, const std::string& argument = "",
        std::chrono::milliseconds timeout = std::chrono::seconds{30}, const std::string& place = "");
  ~Ranks();
  Ranks(const Ranks&) = delete;
  Ranks& operator=(const Ranks&) = delete;

  /// Ends the group from the driver's side (shared memory).
  void abort(const std::string& reason);
  void kill(int rank, int signal);
  /// Blocks until rank `rank` has said `line` (process ranks).
  [[nodiscard]] bool wait_for(int rank, const std::string& line);
  [[nodiscard]] std::vector<RankResult> join();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

/// Texts of ranks that failed, or "".
[[nodiscard]] std::string failures(const std::vector<RankResult>& results);

/// `main` of a test program: a rank when started as one, else the tests.
int main_of_ranks(int argc, char** argv);

#define TROUPE_CHECK(condition, ...)                                                                            \
  do {                                                                                                          \
    if (!(condition))                                                                                           \
      throw std::runtime_error(std::string{__FILE__} + ":" + std::to_string(__LINE__) + ": " #condition " " + \
                               std::string{__VA_ARGS__});                                                       \
  } while (false)

}  // namespace troupe::testing_ranks
