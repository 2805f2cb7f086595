#pragma once

#include <troupe/cluster.hpp>

#include <string>

namespace troupe::tools {

/// Without what a terminal would take for an order: control characters but tabs become '?'.
[[nodiscard]] std::string printable(std::string text);

/// Prints tables of nodes and of runs.
void print_status(const ClusterStatus& status);

}  // namespace troupe::tools
