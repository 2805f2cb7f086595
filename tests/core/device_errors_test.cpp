#include <gtest/gtest.h>

#include <troupe/device_errors.hpp>
#include <troupe/failure_policy.hpp>
#include <troupe/failure_rules.hpp>

#include <string>

// Texts as users post them and as the libraries' sources have them. Nothing here ran on a GPU.

namespace troupe {
namespace {

const std::string advice =
    "\nCUDA kernel errors might be asynchronously reported at some other API call, so the stacktrace below might be incorrect.\n"
    "For debugging consider passing CUDA_LAUNCH_BLOCKING=1\nCompile with `TORCH_USE_CUDA_DSA` to enable device-side assertions.\n";

Errc code_of(const std::string& text) {
  const auto error = device_error(text);
  return error ? error->code : Errc::Ok;
}

TEST(DeviceErrors, AfterWhichTheContextIsLost) {
  for (const char* text : {"an illegal memory access was encountered", "device-side assert triggered", "unspecified launch failure", "misaligned address",
                           "an illegal instruction was encountered", "the launch timed out and was terminated", "invalid program counter", "unknown error"}) {
    EXPECT_EQ(code_of("CUDA error: " + std::string(text) + advice), Errc::DeviceFailed) << text;
  }
  EXPECT_EQ(code_of("cudaMemcpyAsync: an illegal memory access was encountered"), Errc::DeviceFailed);  // as backends/nccl writes it
  EXPECT_EQ(code_of("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm( handle, opa, opb, m, n, k, &alpha, a, lda, b, ldb, &beta, c, ldc)`"),
            Errc::DeviceFailed);
  EXPECT_EQ(code_of("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"), Errc::DeviceFailed);
  EXPECT_EQ(code_of("NCCL error in: ../torch/csrc/distributed/c10d/ProcessGroupNCCL.cpp:1269, unhandled cuda error, NCCL version 2.14.3\n"
                    "ncclUnhandledCudaError: Call to CUDA function failed.\nLast error:\nCuda failure 'an illegal memory access was encountered'"),
            Errc::DeviceFailed);
}

TEST(DeviceErrors, OfMemory) {
  EXPECT_EQ(code_of("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 23.69 GiB of which 1.17 GiB is free. Process 12 has 22.51 GiB memory in use."),
            Errc::OutOfMemory);
  EXPECT_EQ(code_of("CUDA error: out of memory" + advice), Errc::OutOfMemory);
  EXPECT_EQ(code_of("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), Errc::OutOfMemory);
  EXPECT_EQ(code_of("ncclUnhandledCudaError: Call to CUDA function failed.\nLast error:\nCuda failure 2 'out of memory'"), Errc::OutOfMemory);
}

TEST(DeviceErrors, OfTheDeviceItself) {
  EXPECT_EQ(code_of("CUDA error: uncorrectable ECC error encountered" + advice), Errc::DeviceLost);
  EXPECT_EQ(code_of("CUDA error: uncorrectable NVLink error detected during the execution" + advice), Errc::DeviceLost);
  EXPECT_EQ(code_of("CUDA error: Invalid access of peer GPU memory over nvlink or a hardware error" + advice), Errc::DeviceLost);
  EXPECT_EQ(code_of("CUDA error: CUDA-capable device(s) is/are busy or unavailable" + advice), Errc::DeviceLost);
  EXPECT_EQ(code_of("NCCL WARN Cuda failure 214 'uncorrectable ECC error encountered'\nunhandled cuda error"), Errc::DeviceLost);
}

TEST(DeviceErrors, OfConnections) {
  EXPECT_EQ(code_of("all_reduce 7: NCCL: remote process exited or there was a network error"), Errc::NetworkFailed);
  EXPECT_EQ(code_of("NCCL error in: ../torch/csrc/distributed/c10d/NCCLUtils.hpp:219, unhandled system error (run with NCCL_DEBUG=INFO for details), NCCL version 2.14.3\n"
                    "ncclSystemError: System call (e.g. socket, malloc) or external library call failed or device error. "),
            Errc::NetworkFailed);
  EXPECT_EQ(code_of("ncclRemoteError: A call failed possibly due to a network error or a remote process exiting prematurely."), Errc::NetworkFailed);
  EXPECT_EQ(code_of("NCCL communicator was aborted on rank 1."), Errc::Aborted);
  EXPECT_EQ(code_of("ncclInternalError: Internal check failed."), Errc::Internal);
}

TEST(DeviceErrors, ThatComeAgain) {
  EXPECT_EQ(code_of("CUDA error: no kernel image is available for execution on the device" + advice), Errc::Unsupported);
  EXPECT_EQ(code_of("cudaSetDevice: CUDA driver version is insufficient for CUDA runtime version"), Errc::Unsupported);
  EXPECT_EQ(code_of("ncclInvalidUsage: This usually reflects invalid usage of NCCL library.\nLast error:\nDuplicate GPU detected : rank 1 and rank 0 both on CUDA device 1000"),
            Errc::InvalidArgument);
  EXPECT_EQ(code_of("CUDA error: invalid device ordinal" + advice), Errc::InvalidArgument);
}

TEST(DeviceErrors, AreNotSeenInOtherTexts) {
  EXPECT_EQ(code_of(""), Errc::Ok);
  EXPECT_EQ(code_of("the token table is out of memory cells"), Errc::Ok);
  EXPECT_EQ(code_of("misaligned address"), Errc::Ok);
  EXPECT_EQ(code_of("CUDA error: too many resources requested for launch" + advice), Errc::Ok);
  EXPECT_EQ(code_of("Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu!"), Errc::Ok);
  EXPECT_EQ(code_of("cuda" + std::string(1 << 20, 'x')), Errc::Ok);
}

TEST(FailureRules, ReplaceTheProcessWhoseContextIsLost) {
  EXPECT_FALSE(failure_rule(Errc::DeviceFailed).keeps_process);
  EXPECT_FALSE(failure_rule(Errc::DeviceLost).keeps_process);
  EXPECT_TRUE(failure_rule(Errc::OutOfMemory).keeps_process);
  EXPECT_TRUE(failure_rule(Errc::NetworkFailed).keeps_process);
  const FailureConfig any{-1};
  RunError error;
  error.code = Errc::DeviceFailed;
  EXPECT_EQ(after_group_ended(error, false, true, {0, 0, 1}, any).step, NextStep::Retry);
  EXPECT_EQ(after_group_ended(error, false, true, {0, 0, 2}, any).step, NextStep::Fail);
  EXPECT_TRUE(must_end_program(Errc::DeviceFailed, Placement::Threads));
  EXPECT_FALSE(must_end_program(Errc::DeviceFailed, Placement::Processes));
  EXPECT_FALSE(must_end_program(Errc::TrainFunctionFailed, Placement::Threads));
}

TEST(FirstCause, TakesABrokenConnectionForAnEchoWhenThereIsAnotherCause) {
  const auto error = [](Errc code, int rank) {
    RunError made;
    made.code = code;
    made.rank = rank;
    return made;
  };
  EXPECT_EQ(first_cause({error(Errc::Aborted, 0), error(Errc::NetworkFailed, 1), error(Errc::DeviceFailed, 2)}, {})->rank, 2);
  EXPECT_EQ(first_cause({error(Errc::Aborted, 0), error(Errc::NetworkFailed, 1)}, {})->rank, 1);
}

}  // namespace
}  // namespace troupe
