#include "checkpoint_commands.hpp"
#include "checkpoint_text.hpp"

#include <troupe/errors.hpp>
#include <troupe/node_parts.hpp>
#include <troupe/records.hpp>
#include <troupe/remote_run.hpp>
#include <troupe/retention.hpp>
#include <troupe/retrying_store.hpp>
#include <troupe/run_storage.hpp>
#include <troupe/s3.hpp>

#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>

namespace troupe::tools {

namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

struct Options {
  std::string run;
  bool verify = false;
  bool json = false;
};

struct Row {
  fs::path path;
  Manifest manifest;
  std::uint64_t bytes = 0;
  std::string state;    ///< "sizes fit", "verified", "damaged"; "part": of a node whose disk this is
  std::string problem;  ///< of a damaged one; of a part: whose, and where the whole is
};

Row look_at(const fs::path& directory, bool verify) {
  Row row{directory, {}, 0, "sizes fit", ""};
  try {
    if (const auto note = read_part_note(directory)) {
      const auto problems = verify ? verify_part(directory, *note) : std::vector<std::string>{};
      row.state = problems.empty() ? "part" : "damaged";
      row.problem = "it is " + describe(*note);
      for (const auto& problem : problems) row.problem += "; " + problem;
      return row;
    }
    const CheckpointReader reader{directory};
    if (!reader.has_manifest()) throw Failure{Errc::FileCorrupt, directory.string() + " has no " + manifest_name};
    row.manifest = reader.manifest();
    for (const auto& file : row.manifest.files) row.bytes += file.size;
    if (verify) {
      reader.verify();
      row.state = "verified";
    }
  } catch (const Failure& failure) {
    row.state = "damaged";
    row.problem = failure.what();
  }
  return row;
}

void print(const std::vector<Row>& rows) {
  std::vector<std::vector<std::string>> table{{"CHECKPOINT", "STEP", "EPOCH", "SIZE", "WRITERS", "AGE", "STATE", "METRICS"}};
  for (const auto& row : rows) {
    const bool known = row.manifest.num_writers > 0 && !row.manifest.files.empty();
    const bool stated = known && row.manifest.world_size > 0;
    std::error_code error;
    table.push_back({row.path.filename().string(), stated ? std::to_string(row.manifest.step) : "-", stated ? std::to_string(row.manifest.epoch) : "-",
                     known ? size_text(row.bytes) : "-", known ? std::to_string(row.manifest.num_writers) : "-", age_text(fs::last_write_time(row.path, error)), row.state,
                     metrics_text(row.manifest.metrics)});
  }
  print_table(table);
  for (const auto& row : rows) {
    if (!row.problem.empty()) std::printf("%s: %s\n", row.path.filename().string().c_str(), row.problem.c_str());
  }
}

Json json_of(const Row& row) {
  Json made{{"name", row.path.filename().string()}, {"path", row.path.string()}, {"state", row.state}};
  if (!row.problem.empty()) made["problem"] = row.problem;
  if (!row.manifest.files.empty()) {
    made.update({{"index", row.manifest.index}, {"step", row.manifest.step}, {"epoch", row.manifest.epoch}, {"bytes", row.bytes}, {"num_writers", row.manifest.num_writers},
                 {"world_size", row.manifest.world_size}, {"strategy", row.manifest.strategy}, {"attempt", row.manifest.attempt}, {"metrics", to_json(row.manifest.metrics)}});
  }
  return made;
}

// A run in an object store: what is there whole, by manifests and sizes.
int list_store(const Options& o) {
  if (o.verify) throw Failure{Errc::InvalidArgument, "--verify reads every byte: download the checkpoint first, or verify the run where it was written"};
  const auto url = parse_store_url(o.run);
  const auto store = with_retries(open_s3_store(url), {.deadline = std::chrono::seconds{30}});
  store->check();
  RemoteRun remote{*store, url.prefix};
  const auto contents = remote.read();
  if (contents.empty()) throw Failure{Errc::NotFound, "there is no run at " + url.text()};
  Json list = Json::array();
  std::vector<std::vector<std::string>> table{{"CHECKPOINT", "SIZE", "STATE", "METRICS"}};
  for (const auto& record : contents.checkpoints) {
    const auto bytes = contents.bytes.at(record.index);
    list.push_back({{"name", checkpoint_name(record.index)}, {"index", record.index}, {"state", "sizes fit"}, {"bytes", bytes}, {"metrics", to_json(record.metrics)}});
    table.push_back({checkpoint_name(record.index), size_text(bytes), "sizes fit", metrics_text(record.metrics)});
  }
  for (const auto& name : contents.leftovers) {
    list.push_back({{"name", name}, {"state", "incomplete"}});
    table.push_back({name, "-", "incomplete", ""});
  }
  if (o.json) std::puts(list.dump(2).c_str());
  else print_table(table);
  return 0;
}

int run(const Options& o) {
  if (StoragePath{o.run}.is_url()) return list_store(o);
  std::vector<Row> rows;
  bool damaged = false;
  for (const auto& directory : checkpoints_of_run(o.run)) {
    rows.push_back(look_at(directory, o.verify));
    damaged = damaged || rows.back().state == "damaged";
  }
  if (o.json) {
    Json list = Json::array();
    for (const auto& row : rows) list.push_back(json_of(row));
    std::puts(list.dump(2).c_str());
  } else if (rows.empty()) {
    std::printf("%s has no checkpoints\n", o.run.c_str());
  } else {
    print(rows);
  }
  return damaged ? 1 : 0;
}

}  // namespace

Command add_ls(CLI::App& app) {
  auto options = std::make_shared<Options>();
  auto& o = *options;
  auto* command = app.add_subcommand("ls", "Lists a run's checkpoints; exit code 1 when one is damaged");
  command->add_option("RUN_DIR", o.run, "the run's directory, or s3://bucket/prefix/run")->required();
  command->add_flag("--verify", o.verify, "read and verify every byte, not only manifests and sizes");
  command->add_flag("--json", o.json, "as JSON");
  return [options] { return run(*options); };
}

}  // namespace troupe::tools
