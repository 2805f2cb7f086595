#pragma once

#include <cstdint>
#include <optional>
#include <vector>

namespace troupe::detail {

/// Product of the sizes; nothing when one is negative or when even the product of those that are
/// not 0 exceeds 2^56, so that no product of sizes and item bytes overflows later.
[[nodiscard]] std::optional<std::uint64_t> count_elements(
    const std::vector<std::int64_t>& shape) noexcept;
/// Strides of a contiguous tensor. The shape must have passed count_elements.
[[nodiscard]] std::vector<std::int64_t> row_major(const std::vector<std::int64_t>& shape);

}  // namespace troupe::detail
