#pragma once

#include <troupe/safetensors.hpp>

#include <ATen/core/Tensor.h>

#include <filesystem>
#include <map>
#include <string>
#include <utility>
#include <vector>

namespace troupe {

/// Tensors of one or more safetensors files, by name.
using TensorMap = std::map<std::string, at::Tensor>;

/// The element type of the same name. Throws Failure{Unsupported} where the other side has none.
[[nodiscard]] at::ScalarType torch_dtype_of(SafetensorsDtype dtype);
[[nodiscard]] SafetensorsDtype safetensors_dtype_of(at::ScalarType type);

/// Maps a safetensors file. Tensors share the mapping (private, copy on write): nothing is read
/// before it is used, and writing to a tensor does not change the file. Throws
/// Failure{FileNotFound, FileCorrupt} naming file and key.
[[nodiscard]] TensorMap read_safetensors(const std::filesystem::path& file);

/// Reads `model.safetensors`, or the shards that `model.safetensors.index.json` names, of a Hugging
/// Face directory. An index that names a file elsewhere is refused.
[[nodiscard]] TensorMap read_model_directory(const std::filesystem::path& directory);

/// Writes `tensors` as safetensors' own writer orders them (equal tensors give equal bytes), with
/// {"format": "pt"} added to the metadata, which transformers asks for. The bytes reach the disk
/// under another name and are renamed, so `file` is never torn. Throws Failure{InvalidArgument,
/// StorageUnavailable}.
void write_safetensors(const std::filesystem::path& file,
                       const std::vector<std::pair<std::string, at::Tensor>>& tensors,
                       const std::map<std::string, std::string>& metadata = {});

}  // namespace troupe
