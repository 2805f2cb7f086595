#pragma once

#include <troupe/data/datasets.hpp>

#include "batch_pipe.hpp"

namespace troupe {

/// Gets the job's samples, unless it has them, and collates them; without `batching` the one sample is the batch. What
/// the data set or `collate` throws becomes a Failure that names the sample (or, from collate, the samples) by index;
/// a Failure keeps its code, anything else is DataMalformed. Any thread.
/// @param dataset null when all jobs have their samples.
[[nodiscard]] MakeBatch batch_maker(std::shared_ptr<const MapDataset> dataset, Collate collate, bool batching);

/// Runs `read`, which reads one sample of a stream; what it throws becomes a Failure that begins with "sample <number>: ".
[[nodiscard]] std::optional<TensorDict> read_sample(IterableDataset::Pass& pass, std::int64_t number);

}  // namespace troupe
