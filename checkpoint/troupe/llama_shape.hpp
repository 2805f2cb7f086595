#pragma once

#include <troupe/llama_cost.hpp>

#include <filesystem>

namespace troupe {

/// From a Llama's config.json, or that of a directory, whether weights are there or not; nothing where `model` is neither or
/// another architecture. Throws Failure{FileCorrupt, InvalidConfig} naming file and key.
[[nodiscard]] std::optional<LlamaShape> read_llama_shape(const std::filesystem::path& model);

}  // namespace troupe
