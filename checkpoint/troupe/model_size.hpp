#pragma once

#include <troupe/memory_estimate.hpp>

#include <cstdint>
#include <filesystem>
#include <optional>

namespace troupe {

/// Counts the parameters of a Hugging Face model from its safetensors headers; no weight is read. `model` is a directory
/// with model.safetensors or model.safetensors.index.json, or one safetensors file. Tensors of integers are no
/// parameters. Units are the numbered layers by their names ("….layer.<i>.", "….layers.<i>.", "….h.<i>.", "….blocks.<i>.");
/// the rest is the root unit. In a layer, parameters of at most `persistence_threshold` elements count as persistent.
/// Throws Failure{FileNotFound, FileCorrupt} naming the file.
[[nodiscard]] ModelSize read_model_size(const std::filesystem::path& model, std::int64_t persistence_threshold = 0);

/// hidden_size of the directory's config.json, or the largest of its hidden_sizes; nothing when there is none.
[[nodiscard]] std::optional<std::int64_t> read_hidden_size(const std::filesystem::path& model);

}  // namespace troupe
