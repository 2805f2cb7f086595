#pragma once

#include <troupe/manifest.hpp>

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

namespace troupe {

/// XXH3-64 (xxhash 0.8's stable one, seed 0), with the widest vectors of this processor.
[[nodiscard]] std::uint64_t digest_of(std::span<const std::byte> bytes) noexcept;
[[nodiscard]] std::uint64_t digest_of(std::string_view bytes) noexcept;
/// A file's digest: over its segments' begin (8 bytes), length (4) and digest (8), little-endian, by offset.
[[nodiscard]] std::uint64_t digest_of(const std::vector<Segment>& segments);

}  // namespace troupe
