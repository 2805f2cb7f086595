#include "checkpoint_commands.hpp"
#include "checkpoint_text.hpp"

#include <troupe/records.hpp>

#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>

namespace troupe::tools {

namespace {

using Json = nlohmann::ordered_json;

struct Options {
  std::string directory;
  bool json = false;
  bool files = false;
};

void print_state(const TrainState& state) {
  std::printf("  step %lld, epoch %lld; %s, strategy %s\n", static_cast<long long>(state.step), static_cast<long long>(state.epoch),
              count_text(static_cast<std::uint64_t>(state.world_size), "rank").c_str(), state.strategy.empty() ? "unknown" : state.strategy.c_str());
  for (std::size_t i = 0; i < state.learning_rates.size(); ++i) {
    std::printf("  optimizer %zu: learning rate", i);
    for (std::size_t group = 0; group < state.learning_rates[i].size(); ++group) std::printf("%s %g", group ? "," : "", state.learning_rates[i][group]);
    std::printf("\n");
  }
  for (std::size_t i = 0; i < state.scheduler_steps.size(); ++i) std::printf("  scheduler %zu: after %lld steps\n", i, static_cast<long long>(state.scheduler_steps[i]));
  for (std::size_t i = 0; i < state.loaders.size(); ++i) {
    const auto& loader = state.loaders[i];
    std::printf("  loader %zu: epoch %lld, %lld batches a rank and %lld samples into it\n", i, static_cast<long long>(loader.epoch), static_cast<long long>(loader.num_batches),
                static_cast<long long>(loader.samples_consumed));
  }
  if (state.loss_scale > 0) std::printf("  loss scale %g, %lld good steps\n", state.loss_scale, static_cast<long long>(state.loss_scale_good_steps));
  for (const auto& [name, bytes] : state.objects) std::printf("  object '%s': %s\n", name.c_str(), size_text(bytes.size()).c_str());
}

void print_ranks(const CheckpointReader& reader) {
  for (int rank = 0; rank < reader.manifest().num_writers; ++rank) {
    const auto& own = reader.rank_state(rank);
    std::printf("  rank %d: random numbers' state %s", rank, own.rng.empty() ? "not saved" : size_text(own.rng.size()).c_str());
    for (const auto& [name, bytes] : own.objects) std::printf(", '%s' %s", name.c_str(), size_text(bytes.size()).c_str());
    std::printf("\n");
  }
}

void print(const Options& o, const CheckpointReader& reader) {
  const auto& manifest = reader.manifest();
  std::uint64_t total = 0;
  for (const auto& file : manifest.files) total += file.size;
  if (reader.has_manifest()) {
    std::printf("%s: a checkpoint of report %llu, attempt %llu, written by %s; %s in %s\n", o.directory.c_str(), static_cast<unsigned long long>(manifest.index),
                static_cast<unsigned long long>(manifest.attempt), count_text(static_cast<std::uint64_t>(manifest.num_writers), "rank").c_str(), size_text(total).c_str(),
                count_text(manifest.files.size(), "file").c_str());
    std::printf("manifest, sizes and rank files verify; `troupe checkpoint verify` reads the rest\n");
    if (const auto metrics = metrics_text(manifest.metrics); !metrics.empty()) std::printf("metrics: %s\n", metrics.c_str());
  } else {
    std::printf("%s: a Hugging Face directory without a manifest: nothing but the headers can be verified\n", o.directory.c_str());
  }
  if (reader.state()) {
    std::printf("\nstate of training\n");
    print_state(*reader.state());
    print_ranks(reader);
  }
  for (const auto& stem : reader.stems()) {
    std::vector<std::vector<std::string>> table{{"TENSOR", "DTYPE", "SHAPE", "SIZE"}};
    std::uint64_t elements = 0, bytes = 0;
    const auto tensors = reader.tensors(stem);
    for (const auto& tensor : tensors) {
      table.push_back({tensor.name, std::string(name(tensor.dtype)), shape_text(tensor.shape), size_text(bytes_of(tensor))});
      elements += elements_of(tensor);
      bytes += bytes_of(tensor);
    }
    std::printf("\n%s: %s, %llu elements, %s\n", stem.c_str(), count_text(tensors.size(), "tensor").c_str(), static_cast<unsigned long long>(elements), size_text(bytes).c_str());
    print_table(table);
  }
  if (!o.files) return;
  std::vector<std::vector<std::string>> table{{"FILE", "SIZE", "SEGMENTS", "DIGEST (XXH3-64)"}};
  for (const auto& file : manifest.files) {
    char digest[24];
    (void)std::snprintf(digest, sizeof digest, "%016llx", static_cast<unsigned long long>(file.digest));
    table.push_back({file.name, size_text(file.size), std::to_string(file.segments.size()), reader.has_manifest() ? digest : "-"});
  }
  std::printf("\n");
  print_table(table);
}

Json state_json(const TrainState& state) {
  Json loaders = Json::array(), objects = Json::object();
  for (const auto& loader : state.loaders) {
    loaders.push_back({{"epoch", loader.epoch}, {"num_batches", loader.num_batches}, {"samples_consumed", loader.samples_consumed}, {"shared_seed", loader.shared_seed}});
  }
  for (const auto& [name, bytes] : state.objects) objects[name] = bytes.size();
  return {{"step", state.step}, {"epoch", state.epoch}, {"world_size", state.world_size}, {"strategy", state.strategy}, {"learning_rates", state.learning_rates},
          {"scheduler_steps", state.scheduler_steps}, {"loaders", loaders}, {"loss_scale", state.loss_scale}, {"objects_bytes", objects}};
}

Json json_of(const Options& o, const CheckpointReader& reader) {
  const auto& manifest = reader.manifest();
  Json made{{"path", o.directory}, {"has_manifest", reader.has_manifest()}};
  if (reader.has_manifest()) {
    made.update({{"index", manifest.index}, {"attempt", manifest.attempt}, {"num_writers", manifest.num_writers}, {"world_size", manifest.world_size}, {"step", manifest.step},
                 {"epoch", manifest.epoch}, {"strategy", manifest.strategy}, {"metrics", to_json(manifest.metrics)}});
  }
  if (reader.state()) made["state"] = state_json(*reader.state());
  for (const auto& stem : reader.stems()) {
    auto& list = made["tensors"][stem] = Json::array();
    for (const auto& tensor : reader.tensors(stem)) {
      list.push_back({{"name", tensor.name}, {"dtype", std::string(name(tensor.dtype))}, {"shape", tensor.shape}, {"bytes", bytes_of(tensor)}});
    }
  }
  made["files"] = Json::array();
  for (const auto& file : manifest.files) made["files"].push_back({{"name", file.name}, {"bytes", file.size}});
  return made;
}

int run(const Options& o) {
  const auto reader = open_checkpoint(o.directory);
  if (o.json) {
    std::puts(json_of(o, reader).dump(2, ' ', false, Json::error_handler_t::replace).c_str());
  } else {
    print(o, reader);
  }
  return 0;
}

}  // namespace

Command add_inspect(CLI::App& app) {
  auto options = std::make_shared<Options>();
  auto& o = *options;
  auto* command = app.add_subcommand("inspect", "Says what a checkpoint holds: state of training, tensors, files");
  command->add_option("DIR", o.directory, "a checkpoint, or a Hugging Face directory")->required();
  command->add_flag("--files", o.files, "files, too, with their digests");
  command->add_flag("--json", o.json, "as JSON");
  return [options] { return run(*options); };
}

}  // namespace troupe::tools
