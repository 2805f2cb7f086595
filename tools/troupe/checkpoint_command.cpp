#include "checkpoint_commands.hpp"

#include <troupe/errors.hpp>

#include <utility>
#include <vector>

namespace troupe::tools {

Command add_checkpoint(CLI::App& app) {
  auto* command = app.add_subcommand("checkpoint", "Looks at checkpoints: ls, inspect, verify, diff, export, prune");
  std::vector<std::pair<CLI::App*, Command>> parts;
  for (auto* add : {add_ls, add_inspect, add_verify, add_diff, add_export, add_prune}) {
    auto run = add(*command);
    auto* added = command->get_subcommands([](const CLI::App*) { return true; }).back();
    added->allow_extras();
    parts.emplace_back(added, std::move(run));
  }
  return [parts = std::move(parts)] {
    for (const auto& [part, run] : parts) {
      if (part->parsed()) return run();
    }
    throw WrongUse{"say what to do: ls, inspect, verify, diff, export or prune"};
  };
}

}  // namespace troupe::tools
