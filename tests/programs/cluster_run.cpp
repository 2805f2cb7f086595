#include "cluster_run.hpp"

#include <CLI/CLI.hpp>

#include <cstdio>
#include <map>

namespace troupe::test {

namespace {

struct Options {
  std::string storage, name = "run", strategy = "ddp", placement = "nodes";
  int ranks = 6, batch = 2, updates = 40, checkpoint_every = 10, step_ms = 0, failures = 0, min_ranks = 0;
};

int run(const Session& session, const Options& o) {
  TrainerOptions options;
  auto& scaling = options.scaling;
  scaling.num_workers = o.ranks;
  scaling.min_workers = o.min_ranks;
  scaling.placement = o.placement == "nodes" ? Placement::Nodes : o.placement == "processes" ? Placement::Processes : Placement::Threads;
  if (scaling.placement == Placement::Nodes) scaling.placement_strategy = PlacementStrategy::Spread;
  options.run.name = o.name;
  options.run.storage_path = o.storage;
  options.run.progress = false;
  options.run.failure.max_failures = o.failures;
  options.run.collective_timeout = std::chrono::seconds{30};
  if (scaling.placement == Placement::Nodes) {
    options.cluster = cluster_from_environment();
    if (!options.cluster) throw Failure{Errc::InvalidConfig, "start it with troupe launch, or set TROUPE_CLUSTER_LISTEN"};
    std::printf("listens %s\n", options.cluster->address().c_str());
  }
  struct Sum {
    std::uint64_t attempt = 0;
    double loss = 0;
    int count = 0;
  };
  std::map<std::int64_t, Sum> sums;  // by update, over ranks, of the attempt that came last
  std::string digest;
  options.on_report = [&](const ReportRecord& report) {
    if (const auto* found = report.metrics.find("digest")) digest = std::get<std::string>(*found);
    const auto* update = report.metrics.find("update");
    if (update == nullptr) return;
    auto& sum = sums[std::get<std::int64_t>(*update)];
    if (sum.attempt != report.attempt) sum = {report.attempt};
    sum.loss += report.metrics.number("loss").value_or(0);
    if (++sum.count < o.ranks) return;
    std::printf("update %lld loss %.9g attempt %llu\n", static_cast<long long>(std::get<std::int64_t>(*update)), sum.loss / sum.count, static_cast<unsigned long long>(report.attempt));
    std::fflush(stdout);
  };
  const auto result = TorchTrainer{session, "train", Config{{"strategy", o.strategy}, {"batch", o.batch}, {"updates", o.updates}, {"checkpoint_every", o.checkpoint_every}, {"step_ms", o.step_ms}},
                                   options}.fit();
  if (!digest.empty()) std::printf("digest %s\n", digest.c_str());
  if (result.error) std::printf("error %s: %s\n", std::string(name(result.error->code)).c_str(), result.error->message.c_str());
  std::printf("ended %s\n", result.ok() ? "ok" : "failed");
  return result.exit_code();
}

}  // namespace

int cluster_main(int argc, char** argv, const char* program, const TrainFunction& train) {
  const Session session{argc, argv, {{"train", train}}};
  std::setvbuf(stdout, nullptr, _IOLBF, 0);
  Options o;
  CLI::App app{"Trains on a cluster's nodes"};
  app.add_option("--storage", o.storage)->required();
  app.add_option("--name", o.name);
  app.add_option("--strategy", o.strategy)->check(CLI::IsMember({"ddp", "zero3"}));
  app.add_option("--placement", o.placement)->check(CLI::IsMember({"nodes", "processes", "threads"}));
  app.add_option("--ranks", o.ranks);
  app.add_option("--min-ranks", o.min_ranks);
  app.add_option("--batch", o.batch);
  app.add_option("--updates", o.updates);
  app.add_option("--checkpoint-every", o.checkpoint_every);
  app.add_option("--step-ms", o.step_ms);
  app.add_option("--failures", o.failures);
  CLI11_PARSE(app, argc, argv);
  try {
    return run(session, o);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s: %s\n", program, error.what());
    return 1;
  }
}

}  // namespace troupe::test
