#include <troupe/errors.hpp>
#include <troupe/launch.hpp>

#include <charconv>

namespace troupe {

namespace {

class Variables {
 public:
  explicit Variables(const EnvironmentLookup& lookup) : lookup_(lookup) {}

  [[nodiscard]] bool has(const std::string& name) const { return lookup_(name).has_value(); }
  [[nodiscard]] std::string text(const std::string& name) const { return lookup_(name).value_or(""); }

  [[nodiscard]] std::optional<int> number(const std::string& name) const {
    const auto value = lookup_(name);
    if (!value) return {};
    int parsed = 0;
    const auto* end = value->data() + value->size();
    const auto read = std::from_chars(value->data(), end, parsed);
    if (read.ec != std::errc{} || read.ptr != end || parsed < 0) throw Failure{Errc::InvalidConfig, name + " is '" + *value + "', but should be a number from 0 on"};
    return parsed;
  }

  /// The first of `names` that is set.
  [[nodiscard]] int number(std::initializer_list<const char*> names, const std::string& launcher) const {
    std::string all;
    for (const auto* name : names) {
      if (const auto value = number(std::string{name})) return *value;
      all += (all.empty() ? "" : " or ") + std::string{name};
    }
    throw Failure{Errc::InvalidConfig, launcher + " should have set " + all + ", which is not there"};
  }

 private:
  const EnvironmentLookup& lookup_;
};

void check(const LaunchTask& task, int num_tasks) {
  if (task.rank >= num_tasks || task.node >= task.num_nodes || task.num_nodes < 1) {
    throw Failure{Errc::InvalidConfig, task.launcher + " says that this is task " + std::to_string(task.rank) + " of " + std::to_string(num_tasks) + " on node " +
                                           std::to_string(task.node) + " of " + std::to_string(task.num_nodes) + ", which cannot be"};
  }
}

LaunchTask of_srun(const Variables& env) {
  LaunchTask task{.launcher = "srun"};
  task.rank = env.number({"SLURM_PROCID"}, "srun");
  task.local_rank = env.number({"SLURM_LOCALID"}, "srun");
  task.node = env.number({"SLURM_NODEID"}, "srun");
  task.num_nodes = env.number({"SLURM_STEP_NUM_NODES", "SLURM_NNODES", "SLURM_JOB_NUM_NODES"}, "srun");
  check(task, env.number({"SLURM_STEP_NUM_TASKS", "SLURM_NTASKS", "SLURM_NPROCS"}, "srun"));
  for (const auto* name : {"SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST", "SLURM_NODELIST"}) {
    if (!env.has(name) || !task.head_host.empty()) continue;
    task.hosts = expand_hosts(env.text(name));
    if (static_cast<int>(task.hosts.size()) < task.num_nodes) {
      throw Failure{Errc::InvalidConfig, std::string(name) + " has " + std::to_string(task.hosts.size()) + " hosts, but the job has " + std::to_string(task.num_nodes) + " nodes"};
    }
    task.head_host = task.hosts.front();
  }
  const auto job = env.number("SLURM_JOB_ID").value_or(0);
  task.job = std::to_string(job) + "." + env.text("SLURM_STEP_ID");
  task.head_port = 20'000 + job % 10'000;  // jobs that share nodes seldom meet; below the ephemeral ports
  return task;
}

/// Launchers that say how many tasks there are, here and in all, but not which node this is: nodes have the same number each.
void count_nodes(LaunchTask& task, int num_tasks, std::optional<int> local_tasks) {
  const int here = local_tasks.value_or(1);
  if (here < 1 || num_tasks % here != 0) {
    throw Failure{Errc::InvalidConfig, task.launcher + " started " + std::to_string(here) + " of " + std::to_string(num_tasks) +
                                           " tasks on this node; every node needs the same number: one per node is best"};
  }
  task.num_nodes = num_tasks / here;
  task.node = task.rank / here;
}

LaunchTask of_mpirun(const Variables& env) {
  const bool open_mpi = env.has("OMPI_COMM_WORLD_RANK");
  LaunchTask task{.launcher = "mpirun"};
  task.rank = env.number({"OMPI_COMM_WORLD_RANK", "PMI_RANK"}, "mpirun");
  const auto num_tasks = env.number({"OMPI_COMM_WORLD_SIZE", "PMI_SIZE"}, "mpirun");
  task.local_rank = env.number({open_mpi ? "OMPI_COMM_WORLD_LOCAL_RANK" : "MPI_LOCALRANKID"}, "mpirun");
  count_nodes(task, num_tasks, env.number(open_mpi ? "OMPI_COMM_WORLD_LOCAL_SIZE" : "MPI_LOCALNRANKS"));
  check(task, num_tasks);
  task.head_host = env.text("MASTER_ADDR");
  task.head_port = env.number("MASTER_PORT").value_or(0);
  task.job = env.text("PMIX_NAMESPACE");
  return task;
}

LaunchTask of_torchrun(const Variables& env) {
  LaunchTask task{.launcher = env.has("ACCELERATE_MIXED_PRECISION") || env.has("ACCELERATE_DYNAMO_BACKEND") ? "accelerate launch" : "torchrun"};
  task.rank = env.number({"RANK"}, task.launcher);
  const auto num_tasks = env.number({"WORLD_SIZE"}, task.launcher);
  task.local_rank = env.number({"LOCAL_RANK"}, task.launcher);
  count_nodes(task, num_tasks, env.number("LOCAL_WORLD_SIZE"));
  task.node = env.number("GROUP_RANK").value_or(task.node);
  task.num_nodes = env.number("GROUP_WORLD_SIZE").value_or(task.num_nodes);
  check(task, num_tasks);
  task.head_host = env.text("MASTER_ADDR");
  if (task.head_host.empty()) throw Failure{Errc::InvalidConfig, task.launcher + " should have set MASTER_ADDR, which is not there"};
  task.head_port = env.number({"MASTER_PORT"}, task.launcher);
  // Its own store listens there.
  if (env.has("TORCHELASTIC_RUN_ID") && task.head_port > 0) ++task.head_port;
  task.job = env.text("TORCHELASTIC_RUN_ID");
  return task;
}

}  // namespace

LaunchRole role_of(const LaunchTask& task) noexcept {
  if (task.rank == 0) return LaunchRole::Head;
  return task.local_rank == 0 ? LaunchRole::Agent : LaunchRole::Idle;
}

std::optional<LaunchTask> task_from_environment(const EnvironmentLookup& environment) {
  const Variables env{environment};
  // The innermost launcher first: srun starts mpirun's daemons and torchrun's agents, whose tasks still see its variables.
  if (env.has("TORCHELASTIC_RUN_ID")) return of_torchrun(env);
  if (env.has("OMPI_COMM_WORLD_RANK")) return of_mpirun(env);
  if (env.has("SLURM_STEP_ID") && env.has("SLURM_PROCID")) return of_srun(env);
  if (env.has("PMI_RANK")) return of_mpirun(env);
  if (env.has("RANK") && env.has("WORLD_SIZE")) return of_torchrun(env);
  if (env.has("SLURM_JOB_ID")) {  // a batch script, or the shell of salloc
    throw Failure{Errc::InvalidConfig, "this is inside Slurm job " + env.text("SLURM_JOB_ID") +
                                           ", but no task of srun: write 'srun --ntasks-per-node=1 troupe launch …'; or say --nodes or --hosts to ignore Slurm"};
  }
  return {};
}

}  // namespace troupe
