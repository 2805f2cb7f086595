#pragma once

#include <troupe/placement.hpp>

#include <string>

namespace troupe::detail {

/// Processors that this process may use, memory, and NVIDIA GPUs.
[[nodiscard]] Resources resources_of_machine();
/// Runnable tasks over the last minute.
[[nodiscard]] double load_of_machine() noexcept;
[[nodiscard]] std::string host_name();

}  // namespace troupe::detail
