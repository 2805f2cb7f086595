#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

namespace troupe {

/// The hosts of "gpu[01-03,7],login-a": Slurm's way to write them, a plain list, or both; digits keep their width. At most 65,536.
/// Throws Failure{InvalidConfig} naming the place.
[[nodiscard]] std::vector<std::string> expand_hosts(const std::string& list);

/// One task of a job that a launcher started on one or more nodes.
struct LaunchTask {
  std::string launcher{};  ///< "srun", "mpirun", "torchrun", …; for messages
  int rank = 0;          ///< of all tasks
  int local_rank = 0;    ///< of this node's tasks
  int node = 0;          ///< of the nodes
  int num_nodes = 1;
  std::string head_host{};  ///< of the first node; empty: the launcher does not say
  int head_port = 0;      ///< 0: any that is agreed on otherwise
  std::vector<std::string> hosts{};  ///< of the nodes, where the launcher says so
  std::string job{};        ///< tells jobs on one host apart; may be empty
};

enum class LaunchRole {
  Head,   ///< runs the program, and offers its own node
  Agent,  ///< the first task of another node: offers it
  Idle,   ///< a further task of a node: nothing is left to do for it
};
[[nodiscard]] LaunchRole role_of(const LaunchTask& task) noexcept;

/// A variable's value, as std::getenv; nothing when it is not set.
using EnvironmentLookup = std::function<std::optional<std::string>(const std::string& name)>;

/// What this process is to the launcher that started it: srun (SLURM_*), mpirun (OMPI_*, PMI_*), torchrun or `accelerate launch` (RANK, WORLD_SIZE,
/// MASTER_ADDR, …); of several the innermost. Nothing when none did.
/// Throws Failure{InvalidConfig} for variables that contradict each other, and inside a Slurm job that is not a task of srun.
[[nodiscard]] std::optional<LaunchTask> task_from_environment(const EnvironmentLookup& environment);

/// The machine of a list of hosts that goes by one of `own_names`. Throws Failure{NotFound} listing both.
[[nodiscard]] LaunchTask task_of_host(const std::vector<std::string>& hosts, const std::vector<std::string>& own_names);

/// "HOST:PORT", "[::1]:PORT". Throws Failure{InvalidConfig}.
struct HostPort {
  std::string host;
  int port = 0;
};
[[nodiscard]] HostPort parse_host_port(const std::string& text);

/// "8", "512M", "1.5GiB" as bytes. Throws Failure{InvalidConfig}.
[[nodiscard]] std::uint64_t parse_bytes(const std::string& text);

}  // namespace troupe
