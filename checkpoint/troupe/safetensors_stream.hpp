#pragma once

#include <troupe/safetensors.hpp>

#include <functional>

namespace troupe {

/// A tensor that has no bytes yet.
struct SafetensorsSpec {
  std::string name;
  SafetensorsDtype dtype = SafetensorsDtype::F32;
  std::vector<std::uint64_t> shape;
};

/// Fills the bytes of one tensor.
using SafetensorsFill = std::function<void(const SafetensorsSpec&, std::span<std::byte>)>;

/// The file that write_safetensors_file would write, tensor by tensor in the file's order, so that no more than the largest
/// is in memory. `file` appears whole or, when `fill` throws, not at all. Throws as write_safetensors_file.
void write_safetensors_stream(const std::filesystem::path& file, std::vector<SafetensorsSpec> tensors, const SafetensorsFill& fill,
                              const std::map<std::string, std::string>& metadata = {});

}  // namespace troupe
