#pragma once

#include <troupe/metrics.hpp>

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>

// What the transfer of a checkpoint needs to know of its manifest.

namespace troupe {

struct CheckpointListing {
  std::uint64_t index = 0;
  Metrics metrics;
  std::map<std::string, std::uint64_t> files;  ///< size by path relative to the directory; not the manifest's own
};

/// The file that makes a directory, or a prefix in a store, a checkpoint.
[[nodiscard]] const char* listing_name() noexcept;
/// @param what for messages: the manifest's place. Throws Failure{FileCorrupt}; paths that leave the directory are refused.
[[nodiscard]] CheckpointListing parse_listing(const std::string& bytes, const std::string& what);
/// Verifies everything in the directory against its manifest. Throws Failure{FileCorrupt}.
void verify_directory(const std::filesystem::path& directory);

}  // namespace troupe
