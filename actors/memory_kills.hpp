#pragma once

#include <cstdint>
#include <exception>
#include <filesystem>
#include <optional>
#include <string>

// Whether memory ran out: what an exception says, and what the kernel counts.

namespace troupe {

/// True of std::bad_alloc, c10::OutOfMemoryError and what LibTorch's allocators throw.
[[nodiscard]] bool ran_out_of_memory(const std::exception& error);

/// How many processes the kernel has killed for memory, as near to this process as it tells.
struct MemoryKills {
  std::uint64_t count = 0;
  std::string where;      ///< the file
  bool of_group = false;  ///< in this process's control group; else anywhere on the machine
};

/// From the control group of this process (version 2 or 1), else of the machine; nothing when the kernel does not say.
/// @param root "/", in tests a directory that looks like it
[[nodiscard]] std::optional<MemoryKills> memory_kills(const std::filesystem::path& root = "/");

/// For a process that SIGKILL has ended: why it is taken for a kill for memory, or "" when nothing speaks for it.
[[nodiscard]] std::string memory_verdict(const std::optional<MemoryKills>& before, const std::optional<MemoryKills>& after);

}  // namespace troupe
