#pragma once

#include <troupe/errors.hpp>

#include <optional>
#include <string_view>

namespace troupe {

/// What an exception's text says of a GPU, in the words of CUDA, cuBLAS, cuDNN, NCCL and c10.
struct DeviceError {
  Errc code = Errc::DeviceFailed;
  std::string_view phrase;  ///< by which it was known: "device-side assert triggered"
};

/// Nothing when the text names none of those libraries, or an error of theirs that the process survives and a retry does not help.
/// Texts of cudaGetErrorString (CUDA 12), ncclGetErrorString (NCCL 2.28), c10's CUDA_CHECK and c10d's NCCL checks; not run on a GPU.
[[nodiscard]] std::optional<DeviceError> device_error(std::string_view text) noexcept;

}  // namespace troupe
