#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <string_view>

namespace troupe::detail {

struct ZipEntry {
  std::uint64_t begin = 0;  ///< of the data, from the start of the archive
  std::uint64_t size = 0;
  std::uint32_t crc = 0;  ///< 0 also when the writer left it out
};

/// The directory of a zip archive as torch.save writes it: entries stored, not compressed, not
/// encrypted, one after the other and all of them before the directory, which ends the archive.
/// zip64 is read. Nothing is allocated that the archive only claims. Throws Failure{FileCorrupt,
/// Unsupported} that begins with `what` and names entry and byte.
[[nodiscard]] std::map<std::string, ZipEntry, std::less<>> read_zip_directory(
    std::span<const std::byte> archive, std::string_view what);

/// Begins as a zip archive does.
[[nodiscard]] bool looks_like_zip(std::span<const std::byte> bytes) noexcept;

/// CRC-32 as in zip (IEEE 802.3), eight bytes at a time.
[[nodiscard]] std::uint32_t crc32(std::span<const std::byte> bytes) noexcept;

}  // namespace troupe::detail
