#pragma once

#include <cstddef>
#include <filesystem>
#include <memory>
#include <span>

namespace troupe::detail {

/// A whole file, mapped private and copy on write. Nobody may shorten it while it is mapped.
struct MappedFile {
  std::shared_ptr<void> keep;
  std::span<std::byte> bytes;
};

/// Throws Failure{FileNotFound, FileCorrupt, StorageUnavailable}, file named.
[[nodiscard]] MappedFile map_private(const std::filesystem::path& file);

}  // namespace troupe::detail
