#include <troupe/device_errors.hpp>

#include <algorithm>
#include <cctype>

namespace troupe {

namespace {

struct Phrase {
  std::string_view text;  // in lower case
  Errc code;
};

// The first one that is found counts: what is worse, or says more, stands first. NCCL's "unhandled cuda error" follows CUDA's own words.
constexpr Phrase phrases[] = {
    // The memory or the device itself; with Xid 48, 63, 64, 74, 79, 94 or 95 in the kernel's log.
    {"uncorrectable ecc error", Errc::DeviceLost},
    {"uncorrectable nvlink error", Errc::DeviceLost},
    {"invalid access of peer gpu memory over nvlink or a hardware error", Errc::DeviceLost},
    {"cudaerrorcontained", Errc::DeviceLost},
    {"no cuda-capable device is detected", Errc::DeviceLost},
    {"cuda-capable device(s) is/are busy or unavailable", Errc::DeviceLost},
    {"gpu is lost", Errc::DeviceLost},
    {"fallen off the bus", Errc::DeviceLost},
    // Memory.
    {"cuda out of memory", Errc::OutOfMemory},
    {"cudaerrormemoryallocation", Errc::OutOfMemory},
    {"cublas_status_alloc_failed", Errc::OutOfMemory},
    {"cudnn_status_alloc_failed", Errc::OutOfMemory},
    {"out of memory", Errc::OutOfMemory},
    // The process's context: every later call fails with the same error.
    {"an illegal memory access was encountered", Errc::DeviceFailed},
    {"device-side assert triggered", Errc::DeviceFailed},
    {"unspecified launch failure", Errc::DeviceFailed},
    {"an illegal instruction was encountered", Errc::DeviceFailed},
    {"misaligned address", Errc::DeviceFailed},
    {"operation not supported on global/shared address space", Errc::DeviceFailed},
    {"invalid program counter", Errc::DeviceFailed},
    {"hardware stack error", Errc::DeviceFailed},
    {"the launch timed out and was terminated", Errc::DeviceFailed},
    {"driver shutting down", Errc::DeviceFailed},
    {"context is destroyed", Errc::DeviceFailed},
    {"cublas_status_execution_failed", Errc::DeviceFailed},
    {"cublas_status_internal_error", Errc::DeviceFailed},
    {"cublas_status_not_initialized", Errc::DeviceFailed},
    {"cudnn_status_execution_failed", Errc::DeviceFailed},
    {"cudnn_status_internal_error", Errc::DeviceFailed},
    {"cudnn_status_mapping_error", Errc::DeviceFailed},
    {"cuda error: unknown error", Errc::DeviceFailed},
    {"unhandled cuda error", Errc::DeviceFailed},
    {"ncclunhandledcudaerror", Errc::DeviceFailed},
    // What the next attempt meets again.
    {"driver version is insufficient", Errc::Unsupported},
    {"no kernel image is available", Errc::Unsupported},
    {"the provided ptx was compiled with an unsupported toolchain", Errc::Unsupported},
    {"invalid device ordinal", Errc::InvalidArgument},
    {"ncclinvalidusage", Errc::InvalidArgument},
    {"ncclinvalidargument", Errc::InvalidArgument},
    {"invalid usage (run with nccl_debug", Errc::InvalidArgument},
    {"invalid argument (run with nccl_debug", Errc::InvalidArgument},
    // Connections. Mostly the echo of another rank's end.
    {"remote process exited or there was a network error", Errc::NetworkFailed},
    {"ncclremoteerror", Errc::NetworkFailed},
    {"unhandled system error", Errc::NetworkFailed},
    {"ncclsystemerror", Errc::NetworkFailed},
    {"nccl communicator was aborted", Errc::Aborted},
    {"internal error - please report this issue to the nccl developers", Errc::Internal},
    {"ncclinternalerror", Errc::Internal},
};

constexpr std::string_view libraries[] = {"cuda", "nccl", "cublas", "cudnn", "cufft", "cusparse", "cusolver"};

bool contains(std::string_view text, std::string_view lower_case) noexcept {
  const auto same = [](char a, char b) { return std::tolower(static_cast<unsigned char>(a)) == b; };
  return std::search(text.begin(), text.end(), lower_case.begin(), lower_case.end(), same) != text.end();
}

}  // namespace

std::optional<DeviceError> device_error(std::string_view text) noexcept {
  const bool concerns = std::ranges::any_of(libraries, [&](auto library) { return contains(text, library); });
  if (!concerns) return std::nullopt;
  // c10 ends each of its texts with advice that speaks of device-side assertions.
  constexpr std::string_view advice[] = {"CUDA kernel errors might be asynchronously reported", "For debugging consider passing CUDA_LAUNCH_BLOCKING",
                                         "Compile with `TORCH_USE_CUDA_DSA`"};
  for (const auto line : advice) text = text.substr(0, text.find(line));
  for (const auto& phrase : phrases) {
    if (contains(text, phrase.text)) return DeviceError{phrase.code, phrase.text};
  }
  return std::nullopt;
}

}  // namespace troupe
