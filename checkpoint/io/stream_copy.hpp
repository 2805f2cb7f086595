#pragma once

#include <cstddef>

namespace troupe::detail {

/// memcpy for what the disk reads next and the processor does not: written past the caches where the processor can, so that the lines
/// that are overwritten are not fetched first. Visible to other threads and devices when it returns.
void stream_copy(std::byte* to, const std::byte* from, std::size_t bytes) noexcept;

}  // namespace troupe::detail
