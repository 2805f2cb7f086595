#pragma once

#include "archive.hpp"

#include <troupe/checkpoint_files.hpp>

#include <cmath>
#include <variant>

// How the parts of manifests and rank files look in an archive. What is added here raises their version.

namespace troupe {

template <class Archive>
void serialize(Archive& archive, Segment& segment) {
  archive(segment.begin, segment.length, segment.digest);
}
template <class Archive>
void serialize(Archive& archive, WrittenRun& run) {
  archive(run.rank, run.begin, run.end);
}
template <class Archive>
void serialize(Archive& archive, FileRecord& file) {
  archive(file.name, file.size, file.digest, file.segments, file.writers);
}
template <class Archive>
void serialize(Archive& archive, LoaderRecord& loader) {
  archive(loader.epoch, loader.num_batches, loader.samples_consumed, loader.shared_seed);
}
template <class Archive>
void serialize(Archive& archive, TrainState& state) {
  archive(state.step, state.epoch, state.world_size, state.strategy, state.learning_rates, state.scheduler_steps, state.loaders,
          state.loss_scale, state.loss_scale_good_steps, state.loss_scale_hysteresis, state.objects);
}
template <class Archive>
void serialize(Archive& archive, RankState& state) {
  archive(state.rng, state.objects);
}

/// By name: numbers of enumerators may change.
inline void save(detail::Output& out, const StoredTensor& tensor) {
  out(tensor.stem, tensor.name, std::string(name(tensor.dtype)), tensor.shape, tensor.file, tensor.begin, tensor.bytes);
}
inline void load(detail::Input& in, StoredTensor& tensor) {
  std::string dtype;
  in(tensor.stem, tensor.name, dtype, tensor.shape, tensor.file, tensor.begin, tensor.bytes);
  const auto known = safetensors_dtype(dtype);
  if (!known) in.fail("tensor '" + tensor.name + "' has the unknown dtype '" + dtype + "'");
  tensor.dtype = *known;
}

inline void save(detail::Output& out, const Metrics& metrics) {
  out(static_cast<std::uint64_t>(metrics.size()));
  for (const auto& entry : metrics) {
    out(entry.name, static_cast<std::uint8_t>(entry.value.index()));
    std::visit([&](const auto& value) { out(value); }, entry.value);
  }
}
inline void load(detail::Input& in, Metrics& metrics) {
  std::vector<Metrics::Entry> entries;
  const auto take = [&](std::string name, auto value) {
    in(value);
    entries.emplace_back(std::move(name), MetricValue{std::move(value)});
  };
  for (auto left = in.count(); left > 0; --left) {
    std::string name;
    std::uint8_t kind = 0;
    in(name, kind);
    switch (kind) {
      case 0: take(std::move(name), false); break;
      case 1: take(std::move(name), std::int64_t{0}); break;
      case 2: take(std::move(name), 0.0); break;
      case 3: take(std::move(name), std::string{}); break;
      default: in.fail("metric '" + name + "' is of an unknown kind");
    }
  }
  metrics = Metrics::from_entries(std::move(entries));
}

}  // namespace troupe
