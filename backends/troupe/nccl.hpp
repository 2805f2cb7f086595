#pragma once

#include <troupe/communicator.hpp>
#include <troupe/device.hpp>

#include <chrono>
#include <filesystem>
#include <memory>
#include <string>

namespace troupe {

/// What the plug-in library `libtroupe_nccl.so` offers. It alone links NCCL and the CUDA runtime, and is loaded only on
/// hosts that have a GPU, so one program serves both kinds of host.
///
/// State: compiles and links; its logic is tested against a host-memory stand-in for NCCL's and CUDA's functions. It has
/// not been run on a GPU yet.
class NcclPlugin {
 public:
  virtual ~NcclPlugin() = default;
  /// GPUs of this host; 0 without a driver.
  [[nodiscard]] virtual int device_count() const = 0;
  /// Version of the NCCL that was loaded, as NCCL_VERSION_CODE.
  [[nodiscard]] virtual int version() const = 0;
  /// A new group's name (128 bytes): made on one rank, carried to the others by the actors.
  [[nodiscard]] virtual std::string unique_id() const = 0;
  /// Takes a seat. Every rank of the group calls it at the same time; buffers are memory of GPU `device`.
  /// `abort` ends the calling rank's collectives; peers on other processes are aborted by their own actors.
  /// Throws Failure{DeadlinePassed, Unsupported, InvalidArgument}.
  [[nodiscard]] virtual std::unique_ptr<Communicator> communicator(const std::string& unique_id, int rank, int size, int device,
                                                                   std::chrono::milliseconds timeout) = 0;
  /// Streams, events and memory of GPU `device`, by the CUDA runtime; its compute stream is CUDA's default stream, which is
  /// LibTorch's unless it was told otherwise. Throws Failure{Unsupported}.
  [[nodiscard]] virtual std::unique_ptr<DeviceRuntime> runtime(int device) = 0;
};

inline constexpr int kNcclPluginAbi = 2;
using OpenNcclPlugin = NcclPlugin* (*)(int abi);

/// Loads the plug-in from `library` (default: beside the program, then the loader's path). Throws Failure{Unsupported} that
/// says what is missing; call it before anything asks LibTorch for CUDA.
[[nodiscard]] std::unique_ptr<NcclPlugin> load_nccl_plugin(const std::filesystem::path& library = "libtroupe_nccl.so");

}  // namespace troupe
