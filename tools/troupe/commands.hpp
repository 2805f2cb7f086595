#pragma once

#include <CLI/CLI.hpp>

#include <functional>
#include <stdexcept>

namespace troupe::tools {

/// Adds a subcommand; what it returns runs it, prints to stdout and returns the exit code. Failures are thrown.
using Command = std::function<int()>;
/// Thrown for a wrong word or option; shown with a hint at --help, exit code 2.
class WrongUse : public std::runtime_error {
  using std::runtime_error::runtime_error;
};

[[nodiscard]] Command add_certs(CLI::App& app);
[[nodiscard]] Command add_chaos(CLI::App& app);
[[nodiscard]] Command add_checkpoint(CLI::App& app);
[[nodiscard]] Command add_config(CLI::App& app);
[[nodiscard]] Command add_convert(CLI::App& app);
[[nodiscard]] Command add_drain(CLI::App& app);
[[nodiscard]] Command add_estimate_memory(CLI::App& app);
[[nodiscard]] Command add_launch(CLI::App& app);
[[nodiscard]] Command add_logs(CLI::App& app);
[[nodiscard]] Command add_node(CLI::App& app);
[[nodiscard]] Command add_status(CLI::App& app);
[[nodiscard]] Command add_stop(CLI::App& app);
[[nodiscard]] Command add_top(CLI::App& app);

}  // namespace troupe::tools
