#pragma once

#include <troupe/foreign.hpp>
#include <troupe/tensor_files.hpp>

namespace troupe {

/// The same bytes as at::Tensor, strides kept: a view of the mapped file (private, copy on write),
/// or a copy where the bytes do not lie at a multiple of the element size. Never needs more memory
/// than the file has bytes.
[[nodiscard]] at::Tensor to_tensor(const ForeignTensor& tensor);
[[nodiscard]] TensorMap to_tensors(const ForeignTensors& tensors);

/// The tensors of any file of torch.save, nested containers flattened ("state.0.exp_avg"). Nothing
/// in the file is run. Throws as read_torch_contents.
[[nodiscard]] TensorMap read_torch_tensors(const std::filesystem::path& file);

}  // namespace troupe
