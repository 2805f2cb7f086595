#pragma once

#include "commands.hpp"

namespace troupe::tools {

// The commands below `troupe checkpoint`, each in a file of its own.
[[nodiscard]] Command add_ls(CLI::App& app);
[[nodiscard]] Command add_inspect(CLI::App& app);
[[nodiscard]] Command add_verify(CLI::App& app);
[[nodiscard]] Command add_diff(CLI::App& app);
[[nodiscard]] Command add_export(CLI::App& app);
[[nodiscard]] Command add_prune(CLI::App& app);

}  // namespace troupe::tools
