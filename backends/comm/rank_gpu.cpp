#include <troupe/rank_gpu.hpp>

#include <dlfcn.h>

namespace troupe {

void require_gpus(const NcclPlugin& plugin, int num_ranks) {
  const int count = plugin.device_count();
  if (count >= num_ranks) return;
  throw Failure{Errc::Unsupported, "use_gpu: this host has " + std::to_string(count) + " usable GPUs for " + std::to_string(num_ranks) +
                                       " ranks; use fewer ranks, see CUDA_VISIBLE_DEVICES and the driver, or set use_gpu = false"};
}

std::shared_ptr<NcclPlugin> load_gpus(int num_ranks) {
  std::shared_ptr<NcclPlugin> plugin;
  try {
    plugin = load_nccl_plugin();
  } catch (const Failure& failure) {
    throw Failure{failure.code(), std::string{"use_gpu: "} + failure.what()};
  }
  require_gpus(*plugin, num_ranks);
  // Its constructors register CUDA with LibTorch; nothing here refers to it by symbol.
  if (!dlopen("libtorch_cuda.so", RTLD_NOW | RTLD_GLOBAL)) {
    throw Failure{Errc::Unsupported, "use_gpu: this LibTorch has no CUDA (" + std::string{dlerror()} + "); build with TROUPE_TORCH set to a whole one"};
  }
  return plugin;
}

RankGpu open_rank_gpu(NcclPlugin& plugin, Communicator& host, int local_rank, std::chrono::milliseconds timeout) {
  RankGpu gpu{plugin.runtime(local_rank), nullptr};
  std::string id = host.rank() == 0 ? plugin.unique_id() : std::string{};
  std::uint64_t length = id.size();
  host.broadcast({&length, sizeof length, DType::I64}, 0).wait().or_throw();
  id.resize(length);
  host.broadcast({id.data(), id.size(), DType::U8}, 0).wait().or_throw();
  gpu.communicator = plugin.communicator(id, host.rank(), host.size(), local_rank, timeout);
  return gpu;
}

}  // namespace troupe
