#pragma once

#include "node_arguments.hpp"

#include <troupe/launch.hpp>

#include <map>
#include <string>
#include <vector>

namespace troupe::tools {

/// What `troupe launch` was told.
struct LaunchOptions {
  int nodes = 0, node_rank = -1, wait = 120;
  std::string hosts, head, accelerate, certs;
  NodeArguments node;
  bool insecure = false;
  std::vector<std::string> program;
};

/// What this process does.
struct LaunchPlan {
  LaunchRole role = LaunchRole::Head;
  bool is_one_host = false;                                ///< nodes join where the program says that it listens
  std::string head;                                        ///< else here
  std::vector<std::string> own_agents;                     ///< names of nodes to start here; empty: the agent's own choice
  std::vector<std::string> agent_options;
  std::string node_key;                                    ///< tells this launch apart on its host
  std::map<std::string, std::string> program_environment;  ///< of the head's program
};

/// Throws Failure that says what is missing.
[[nodiscard]] LaunchPlan plan_launch(const LaunchOptions& options);
void use_certificates(LaunchPlan& plan, const std::string& directory);

}  // namespace troupe::tools
