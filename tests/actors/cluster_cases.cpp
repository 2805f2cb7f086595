#include "cluster_cases.hpp"

#include <troupe/checkpoint_files.hpp>
#include <troupe/cluster.hpp>
#include <troupe/node.hpp>
#include <troupe/torch_trainer.hpp>

#include <sched.h>
#include <sys/mount.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <span>
#include <stdexcept>
#include <thread>
#include <vector>

namespace troupe {

namespace {

using namespace std::chrono_literals;

float sum_of(TrainContext& context, float value) {
  context.communicator().all_reduce(Buffer{&value, sizeof value, DType::F32}, ReduceOp::Sum).wait().or_throw();
  return value;
}

void note_process(const Config& config) {
  if (config.has("pids")) std::ofstream{config.get<std::string>("pids"), std::ios::app} << getpid() << std::endl;
}

/// One sum, and where the rank is.
void sum(TrainContext& context, const Config& config) {
  note_process(config);
  const double value = sum_of(context, static_cast<float>(context.world_rank() + 1));
  context.barrier();
  std::printf("hello from rank %d\n", context.world_rank());
  context.report({{"sum", value},
                  {"node_rank", context.node_rank()},
                  {"local_rank", context.local_rank()},
                  {"local_world_size", context.local_world_size()},
                  {"agent", std::int64_t{getppid()}}});
}

/// Sums for `steps` steps of 10 ms, with a report after the first one and after the last one.
void steps(TrainContext& context, const Config& config) {
  note_process(config);
  const auto count = config.get<std::int64_t>("steps");
  std::int64_t step = 0;
  while (step < count && !context.should_stop()) {
    std::this_thread::sleep_for(10ms);
    const double value = sum_of(context, 1);
    context.step_completed();
    const auto now = std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
    if (++step == 1) context.report({{"first", value}, {"agent", std::int64_t{getppid()}}, {"steady_s", now}});
  }
  if (step == count) context.report({{"ranks", context.world_size()}, {"agent", std::int64_t{getppid()}}});
}

constexpr std::size_t sharded_numbers = 3 << 20;  // 12 MiB: several segments a rank

/// Every rank has its share of a long vector, and writes it as its range of model.safetensors: bit for bit the same however often it goes on from a checkpoint.
void sharded(TrainContext& context, const Config& config) {
  note_process(config);
  const std::chrono::milliseconds pause{config.has("step_ms") ? config.get<int>("step_ms") : 5};
  const int spoil_at = config.has("spoil_at") ? config.get<int>("spoil_at") : 0;
  const int steps = config.get<int>("steps"), every = config.get<int>("every"), ranks = context.world_size(), rank = context.world_rank();
  const auto begin = sharded_numbers * static_cast<std::size_t>(rank) / static_cast<std::size_t>(ranks);
  const auto end = sharded_numbers * static_cast<std::size_t>(rank + 1) / static_cast<std::size_t>(ranks);
  std::vector<float> share(end - begin, static_cast<float>(rank));
  const auto bytes = std::as_writable_bytes(std::span{share});
  int step = 0;
  if (const auto checkpoint = context.get_checkpoint()) {
    const CheckpointReader reader{checkpoint->path()};
    const ReadRange mine{"numbers", begin * sizeof(float), bytes};
    reader.read("model", {&mine, 1});
    step = static_cast<int>(reader.state()->step);
    if (reader.rank_state(rank).rng != "rng of " + std::to_string(rank)) throw std::runtime_error{"another rank's state"};
  }
  const int began = step;
  while (step < steps && !context.should_stop()) {
    const float value = sum_of(context, static_cast<float>(++step % 7));
    for (std::size_t i = 0; i < share.size(); ++i) share[i] = share[i] * 0.5F + value + static_cast<float>(i % 13);
    std::this_thread::sleep_for(pause);
    context.step_completed();
    if (step % every != 0) continue;
    CheckpointPart part;
    part.rank = rank;
    part.num_writers = ranks;
    part.attempt = 1;
    part.files = {{"model", {{"numbers", SafetensorsDtype::F32, {sharded_numbers}}}, {{"format", "pt"}}, {{0, begin * sizeof(float), bytes}}, 0}};
    part.state.emplace();
    part.state->step = step;
    part.state->world_size = ranks;
    part.rank_state.rng = "rng of " + std::to_string(rank);
    const auto directory = context.shared_checkpoint_dir();
    if (rank == 0) std::ofstream{directory / "config.json"} << "{}";
    write_part(directory, part);
    if (step == spoil_at && rank == ranks - 1) std::filesystem::resize_file(directory / rank_file_name(rank), 100);
    context.report({{"step", step}}, Checkpoint{directory, ranks});
  }
  if (step < steps) return;
  std::uint64_t digest = 14695981039346656037ULL;  // FNV-1a
  for (const auto byte : bytes) digest = (digest ^ static_cast<std::uint64_t>(byte)) * 1099511628211ULL;
  context.report({{"digest", std::to_string(digest)}, {"began", began}});
}

/// Rank 0 writes a checkpoint of its own; every rank one that lies beside the run's directory.
void own_directories(TrainContext& context, const Config& config) {
  const auto mine = std::filesystem::path{config.get<std::string>("elsewhere")} / "mine";
  std::filesystem::create_directories(mine / "deep");
  const auto number = std::to_string(context.world_rank());
  std::ofstream{mine / "deep" / ("of_rank_" + number)} << "rank " << number;
  context.barrier();
  context.report({{"step", 1}}, Checkpoint{mine, context.world_size()});
  if (context.world_rank() != 0) return context.report({{"step", 2}});
  const auto directory = context.checkpoint_dir();
  std::ofstream{directory / "state"} << "state";
  context.report({{"step", 2}}, Checkpoint{directory});
}

/// After two steps rank 1 does as told.
TrainFunction then_on_1(void (*act)()) {
  return [act](TrainContext& context, const Config&) {
    for (int step = 0; step < 1'000; ++step) {
      (void)sum_of(context, 1);
      context.step_completed();
      if (context.world_rank() == 1 && step == 1) act();
    }
  };
}

int drive(const Session& session, char** argv) {
  ClusterOptions open;
  open.listen = std::string("127.0.0.1:") + argv[2];
  const auto cluster = Cluster::open(open);
  if (!cluster->wait_for_nodes(2, 20s)) return 98;
  if (const char* replace = std::getenv("TROUPE_TEST_REPLACE")) std::filesystem::rename(replace, session.program());
  TrainerOptions options;
  options.scaling.num_workers = std::atoi(argv[4]);
  options.scaling.placement = Placement::Nodes;
  options.run.name = "run";
  options.run.storage_path = argv[5];
  options.run.progress = false;
  options.run.start_timeout = 20s;
  options.run.stop_grace = 2s;
  options.cluster = cluster;
  const auto result = TorchTrainer{session, argv[3], {{"steps", 100'000}, {"pids", std::string(argv[5]) + "/pids"}}, options}.fit();
  if (result.error) std::cerr << "error: " << name(result.error->code) << ": " << result.error->message << std::endl;
  return result.exit_code();
}

/// Covers a directory with an empty one, or with `disk`, for this process and its children. False: not allowed.
bool hide(const char* directory, const char* disk) {
  if (unshare(CLONE_NEWNS) != 0 || mount("none", "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0) return false;
  return (disk ? mount(disk, directory, nullptr, MS_BIND, nullptr) : mount("none", directory, "tmpfs", 0, nullptr)) == 0;
}

int agent(char** argv) {
  if (const char* directory = std::getenv("TROUPE_TEST_HIDE"); directory && !hide(directory, std::getenv("TROUPE_TEST_DISK"))) return 97;
  NodeOptions options;
  options.join = argv[2];
  options.name = argv[3];
  options.resources.cpus = std::atof(argv[4]);
  if (const char* certificates = std::getenv("TROUPE_TEST_CERTIFICATES")) {
    options.security.directory = certificates;
    options.security.name = argv[3];
  }
  return NodeAgent::start(options)->wait().ok() ? 0 : 1;
}

}  // namespace

TrainFunctions cluster_cases() {
  return {{"sum", sum},
          {"steps", steps},
          {"sharded", sharded},
          {"own_directories", own_directories},
          {"stop_on_1", then_on_1([] { std::raise(SIGSTOP); })},
          {"crash_on_1", then_on_1([] { std::raise(SIGSEGV); })},
          {"throw_on_1", then_on_1([] {
             std::puts("about to throw");
             throw std::runtime_error{"boom"};
           })}};
}

bool runs_as_other(const Session& session, int argc, char** argv, int& code) {
  const std::string mode = argc > 1 ? argv[1] : "";
  if (mode == "--agent" && argc == 5) return code = agent(argv), true;
  if (mode == "--drive" && argc == 6) return code = drive(session, argv), true;
  return false;
}

}  // namespace troupe
