#pragma once

#include <troupe/data/data_loader.hpp>
#include <troupe/device.hpp>

namespace troupe {

/// For DataLoader::set_transfer: batches go to `runtime`'s device by way of two pinned buffers, each in one copy on a stream of
/// its own, while compute works on the batch before. Tensors that are not dense or lie on a device already are left to LibTorch's `to`.
/// `runtime` must outlive the transfer.
[[nodiscard]] DataLoader::Transfer to_device(DeviceRuntime& runtime);

}  // namespace troupe
