#pragma once

#include <CLI/CLI.hpp>

#include <string>
#include <vector>

namespace troupe::tools {

/// What `troupe node` was told.
struct NodeArguments {
  std::string join, name, address, memory, certs, cert;
  double cpus = 0, gpus = -1;  ///< 0 and below: those of the machine
  std::vector<std::string> labels, resources;
  double give_up_after = 0, head_grace = 5, leave_within = 30;
  bool insecure = false, keep_output = false, once = false;
};

/// Options that `troupe node` and `troupe launch` share.
inline void add_resources(CLI::App& command, NodeArguments& a) {
  command.add_option("--cpus", a.cpus, "processors that it offers [all]")->check(CLI::PositiveNumber);
  command.add_option("--gpus", a.gpus, "GPUs that it offers [all]")->check(CLI::NonNegativeNumber);
  command.add_option("--memory", a.memory, "memory that it offers, as 64G [all]");
  command.add_option("--label", a.labels, "KEY=VALUE that ranks can ask for; may be repeated");
  command.add_option("--resource", a.resources, "KIND=COUNT of a kind of your own; may be repeated");
}

}  // namespace troupe::tools
