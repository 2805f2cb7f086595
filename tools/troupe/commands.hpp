#pragma once

#include <CLI/CLI.hpp>

#include <functional>

namespace troupe::tools {

/// Adds a subcommand; what it returns runs it, prints to stdout and returns the exit code. Failures are thrown.
using Command = std::function<int()>;
[[nodiscard]] Command add_config(CLI::App& app);
[[nodiscard]] Command add_estimate_memory(CLI::App& app);

}  // namespace troupe::tools
