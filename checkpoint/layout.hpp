#pragma once

#include <troupe/checkpoint_files.hpp>

#include <cstdint>
#include <string>
#include <vector>

namespace troupe::detail {

/// Where everything of one SharedTensorFile lies: a pure function of stem, tensors, metadata and max_shard_bytes, so that every
/// writer computes the same without a word.
struct Layout {
  struct LaidOutFile {
    std::string name;
    std::uint64_t size = 0;
    std::string header;  ///< a multiple of 4096 bytes
  };
  struct Place {
    std::uint32_t file = 0;
    std::uint64_t begin = 0;  ///< in the file
    std::uint64_t bytes = 0;
  };
  std::vector<LaidOutFile> files;
  std::vector<Place> places;  ///< by tensor
  std::string index_name;     ///< empty: one file, no index
  std::string index;          ///< text of <stem>.safetensors.index.json
  std::uint64_t digest = 0;   ///< of all that; writers that disagree are found by it
};

/// Throws Failure{InvalidArgument} naming stem and tensor.
[[nodiscard]] Layout lay_out(const SharedTensorFile& file);

/// Safe as a file's name inside a checkpoint: relative, no empty part, no "." and "..", no backslash or control character,
/// at most 4096 bytes.
[[nodiscard]] bool is_plain_name(std::string_view name) noexcept;

}  // namespace troupe::detail
