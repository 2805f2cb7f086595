#include "checkpoint_commands.hpp"
#include "checkpoint_text.hpp"

#include <troupe/config.hpp>
#include <troupe/errors.hpp>
#include <troupe/prune.hpp>

#include <algorithm>
#include <cstdio>
#include <memory>
#include <set>

namespace troupe::tools {

namespace {

struct Options {
  std::string run;
  int keep = 0;
  std::string score, order = "max";
  bool dry_run = false;
};

// A metric that no checkpoint has would keep the newest, not the best.
void must_be_reported(const std::string& score, const std::vector<CheckpointRecord>& records) {
  std::set<std::string> names;
  for (const auto& record : records) {
    if (record.metrics.number(score)) return;
    for (const auto& entry : record.metrics) names.insert(entry.name);
  }
  if (records.empty()) return;
  std::string list;
  for (const auto& name : names) list += (list.empty() ? "" : ", ") + name;
  const auto nearest = nearest_name(score, {names.begin(), names.end()});
  throw Failure{Errc::NotFound, "no checkpoint has a number called '" + score + "'; " +
                                    (nearest.empty() ? "there are: " + (list.empty() ? "none" : list) : "did you mean '" + nearest + "'?")};
}

int run(const Options& o) {
  CheckpointConfig config;
  config.num_to_keep = o.keep;
  if (!o.score.empty()) config.checkpoint_score_attribute = o.score;
  config.checkpoint_score_order = o.order;
  (void)checkpoints_of_run(o.run);  // says what it is, if it is no run
  const auto pruned = prune_run(o.run, config, o.dry_run, [&](const auto& records) {
    if (!o.score.empty()) must_be_reported(o.score, records);
  });
  std::uint64_t bytes = 0;
  for (const auto& gone : pruned.removed) {
    bytes += gone.bytes;
    std::printf("%s %s (%s)%s\n", o.dry_run ? "would remove" : "removed", gone.record.checkpoint.path().filename().c_str(), size_text(gone.bytes).c_str(),
                o.score.empty() ? "" : ("  " + metrics_text(gone.record.metrics)).c_str());
  }
  for (const auto& warning : pruned.warnings) std::printf("left alone: %s\n", warning.c_str());
  std::printf("%s kept, %s %s: %s\n", count_text(pruned.num_kept, "checkpoint").c_str(), std::to_string(pruned.removed.size()).c_str(), o.dry_run ? "would go" : "removed",
              size_text(bytes).c_str());
  return 0;
}

}  // namespace

Command add_prune(CLI::App& app) {
  auto options = std::make_shared<Options>();
  auto& o = *options;
  auto* command = app.add_subcommand("prune", "Removes all but the newest, or best, checkpoints of a run; the newest always stays");
  command->add_option("RUN_DIR", o.run, "the run's directory")->required();
  command->add_option("--keep", o.keep, "how many stay")->required()->check(CLI::Range(1, 1'000'000));
  command->add_option("--score", o.score, "a metric: the best stay instead of the newest");
  command->add_option("--order", o.order, "whether high or low scores are good")->capture_default_str()->check(CLI::IsMember({"max", "min"}));
  command->add_flag("--dry-run", o.dry_run, "only say what would go");
  return [options] { return run(*options); };
}

}  // namespace troupe::tools
