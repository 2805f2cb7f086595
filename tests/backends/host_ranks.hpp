#pragma once

#include "comm_cases.hpp"

#include <troupe/host_group.hpp>

#include <condition_variable>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

/// Hosts that are addresses of loopback, 127.0.0.1, 127.0.0.2, …: their ranks are threads of this process.
namespace troupe::testing_ranks {

/// What the ranks of a group of hosts need before they have met.
struct TestHosts {
  std::vector<int> sizes;
  bool memory;  ///< inside a host over shared memory as between processes, else over that of threads
  std::vector<std::unique_ptr<SharedGroup>> groups{};
  std::vector<std::vector<std::unique_ptr<Communicator>>> seats{};
  std::mutex mutex{};
  std::condition_variable changed{};
  std::vector<std::string> endpoints{};
  std::size_t num_known = 0;

  TestHosts(std::vector<int> sizes_of_hosts, bool over_memory, std::chrono::milliseconds timeout);
  [[nodiscard]] int size() const;
  /// Host and place there.
  [[nodiscard]] std::pair<std::size_t, int> place_of(int rank) const;
  [[nodiscard]] HostPlan plan(int rank) const;
  [[nodiscard]] std::unique_ptr<Communicator> local(int rank);
  /// Tells the others where `rank` waits, waits for all, and says where its peers do, by host.
  [[nodiscard]] std::vector<std::string> exchange(int rank, const std::string& endpoint);
  /// All of it.
  [[nodiscard]] std::unique_ptr<Communicator> join(int rank, std::chrono::milliseconds timeout);
};

/// Runs `body` on the ranks of hosts with `sizes` ranks: "2,2".
[[nodiscard]] std::vector<RankResult> run_on_hosts(const std::string& sizes, bool memory, const std::string& body, const std::string& argument = "",
                                                   std::chrono::milliseconds timeout = std::chrono::seconds{30});
/// Adds the implementation "hosts" to `registry()`.
void register_hosts();
[[nodiscard]] std::vector<int> numbers_of(const std::string& text);

}  // namespace troupe::testing_ranks
