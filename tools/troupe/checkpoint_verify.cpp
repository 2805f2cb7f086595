#include "checkpoint_commands.hpp"
#include "checkpoint_text.hpp"

#include <troupe/errors.hpp>
#include <troupe/node_parts.hpp>

#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>

namespace troupe::tools {

namespace {

using Json = nlohmann::ordered_json;

struct Options {
  std::string directory;
  bool json = false;
};

int run(const Options& o) {
  std::error_code error;
  const auto checkpoints = is_checkpoint(o.directory) ? std::vector<std::filesystem::path>{o.directory} : checkpoints_of_run(o.directory);
  if (checkpoints.empty()) throw Failure{Errc::NotFound, o.directory + " has no checkpoints"};
  Json list = Json::array();
  bool damaged = false;
  for (const auto& directory : checkpoints) {
    const auto part = read_part_note(directory);
    const auto problems = part ? verify_part(directory, *part) : verify_checkpoint(directory);
    damaged = damaged || !problems.empty();
    if (o.json) {
      list.push_back({{"path", directory.string()}, {"verified", problems.empty()}, {"problems", problems}});
      if (part) list.back()["part"] = describe(*part);
      continue;
    }
    if (part) {
      std::printf("%s: it is %s%s\n", directory.string().c_str(), describe(*part).c_str(), problems.empty() ? "; every byte of the part verifies" : "");
    } else if (problems.empty()) {
      std::uint64_t bytes = 0;
      const CheckpointReader reader{directory};
      for (const auto& file : reader.manifest().files) bytes += file.size;
      std::printf("%s: every byte verifies (%s, %s)\n", directory.string().c_str(), count_text(reader.manifest().files.size(), "file").c_str(), size_text(bytes).c_str());
    }
    for (const auto& problem : problems) std::printf("%s: DAMAGED: %s\n", directory.string().c_str(), problem.c_str());
    (void)std::fflush(stdout);
  }
  if (o.json) std::puts(list.dump(2).c_str());
  return damaged ? 1 : 0;
}

}  // namespace

Command add_verify(CLI::App& app) {
  auto options = std::make_shared<Options>();
  auto& o = *options;
  auto* command = app.add_subcommand("verify", "Reads every byte and compares digests; names what is damaged; exit code 1 then");
  command->add_option("DIR", o.directory, "a checkpoint, or a run: then all of its checkpoints")->required();
  command->add_flag("--json", o.json, "as JSON");
  return [options] { return run(*options); };
}

}  // namespace troupe::tools
