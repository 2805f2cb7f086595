#pragma once

#include <troupe/file_system.hpp>
#include <troupe/manifest.hpp>

#include <cstdint>
#include <filesystem>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace troupe::detail {

/// Bytes [begin, begin + into.size()) of a file, wanted in `into`.
struct FileRange {
  std::uint64_t begin = 0;
  std::span<std::byte> into;
};

/// What to say of a segment whose bytes are wrong.
using Describe = std::function<std::string(const FileRecord&, const Segment&)>;

/// Reads `wanted` (sorted by begin; they may overlap) out of `record`'s file by whole segments, each verified before any of its bytes
/// counts. Two threads when there is much to read. Throws Failure{FileCorrupt, describe(…)}.
void read_segments(FileSystem& file_system, const std::filesystem::path& path, const FileRecord& record, std::span<const FileRange> wanted,
                   const Describe& describe);
/// Reads and verifies all of it.
void verify_segments(FileSystem& file_system, const std::filesystem::path& path, const FileRecord& record, const Describe& describe);

}  // namespace troupe::detail
