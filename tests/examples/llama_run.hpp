#pragma once

#include <troupe/accelerator.hpp>
#include <troupe/llama.hpp>
#include <troupe/lora.hpp>
#include <troupe/sharding_options.hpp>
#include <troupe/train_context.hpp>

#include <filesystem>
#include <map>
#include <string>
#include <vector>

namespace troupe::test {

/// How the small Llama of tests/golden/d_llama is trained.
struct LlamaRun {
  bool lora = false;
  ShardingOptions sharding{};
  Precision precision = Precision::No;
  bool clip = true;  ///< to norm 1, as the reference; its norm depends on the order of sums
  bool deferred = false;
  int micro_batches = 1;  ///< of each of the ranks
  double dropout = 0;     ///< of adapters
  std::filesystem::path save_to{};    ///< a checkpoint here …
  int save_after = 0;                 ///< … after so many steps
  int stop_after = 20;
  std::filesystem::path load_from{};  ///< goes on from there
  std::filesystem::path model{};      ///< another base
};

struct LlamaCurve {
  std::vector<double> losses, norms, lrs;
  std::map<std::string, at::Tensor> trained;  ///< on rank 0
  std::int64_t num_trained = 0;
};

/// 20 steps of 8 rows, dealt over the ranks there are.
[[nodiscard]] LlamaCurve train_llama(TrainContext& context, const LlamaRun& run);
/// The same on threads; rank 0's.
[[nodiscard]] LlamaCurve train_llama(int ranks, const LlamaRun& run);

}  // namespace troupe::test
