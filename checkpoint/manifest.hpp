#pragma once

#include <troupe/result.hpp>

#include <filesystem>
#include <map>
#include <string>

namespace troupe {

constexpr const char* manifest_name = ".troupe_manifest.json";

/// What a committed checkpoint's directory must hold.
struct Manifest {
  std::uint64_t index = 0;
  Metrics metrics;
  int num_writers = 1;
  std::map<std::string, std::uintmax_t> files;  ///< size by path relative to the directory
};

[[nodiscard]] std::string to_text(const Manifest& manifest);
/// Reads and verifies the manifest in `directory`: every file must be there in its size. Throws Failure{FileCorrupt}.
[[nodiscard]] Manifest read_manifest(const std::filesystem::path& directory);

}  // namespace troupe
