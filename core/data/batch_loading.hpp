#pragma once

#include <cstdint>
#include <troupe/data/data_loader.hpp>
#include <vector>

namespace troupe {

/// Gets the samples at `indices` and collates them. What the data set or `collate` throws becomes a
/// Failure that names the sample (or, from collate, the samples) by index; a Failure keeps its
/// code, anything else is DataMalformed.
[[nodiscard]] Batch load_batch(const MapDataset& dataset, const Collate& collate,
                               const std::vector<std::int64_t>& indices);

}  // namespace troupe
