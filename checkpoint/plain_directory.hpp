#pragma once

#include <troupe/file_system.hpp>
#include <troupe/manifest.hpp>

namespace troupe::detail {

/// What a Hugging Face directory without a manifest holds: model.safetensors, or the shards that model.safetensors.index.json names, and
/// in the same way optimizer and further models when they are there. Files have neither segments nor digests. Throws
/// Failure{FileNotFound} when there is no model, Failure{FileCorrupt} naming the file: an index that names a file elsewhere,
/// a header that is none, a tensor that is in two shards.
[[nodiscard]] Manifest plain_directory(const std::filesystem::path& directory, FileSystem& file_system);

}  // namespace troupe::detail
