#pragma once

#include <cstdint>
#include <string>

namespace troupe::detail {

/// What tells two builds of a program apart.
struct ProgramDigest {
  std::uint64_t bytes = 0, digest = 0;  ///< XXH3-64 of the file
  bool operator==(const ProgramDigest&) const = default;
};

/// Reads the file once; the same file (path, inode, size and time) costs nothing the next time. Any thread. Throws Failure{FileNotFound}.
[[nodiscard]] ProgramDigest program_digest(const std::string& path);

}  // namespace troupe::detail
