#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <troupe/foreign_pickle.hpp>
#include <variant>
#include <vector>

// Checkpoints that other libraries wrote, as tensors and numbers by name
// (docs/checkpoints_foreign.md). Files are mapped; a tensor is read when its bytes are used, or,
// where the writer stored a checksum, once to verify it.
//
// Errors of every function: Failure{FileNotFound, StorageUnavailable}, {FileCorrupt} for bytes that
// are not what the format demands, {Unsupported} for what is not read; file, key and byte are
// named. Threads: any.

namespace troupe {

using ForeignTensors = std::map<std::string, ForeignTensor>;
using ForeignScalar = std::variant<bool, std::int64_t, double, std::string>;

/// Nested containers are flattened: {"state": {0: {"step": 3}}} is "state.0.step". None and opaque
/// objects are left out.
struct ForeignContents {
  ForeignTensors tensors;
  std::map<std::string, ForeignScalar> values;
};

/// Any file of torch.save: pytorch_model.bin, optimizer.bin, scheduler.bin, random_states_0.pkl, …
[[nodiscard]] ForeignContents read_torch_contents(const std::filesystem::path& file,
                                                  const PickleOptions& options = {});

/// One safetensors file, with the same checks as SafetensorsFile.
[[nodiscard]] ForeignTensors read_safetensors_contents(const std::filesystem::path& file);

/// The weights of a Hugging Face directory: `model.safetensors`, its shards by
/// `model.safetensors.index.json`, `pytorch_model.bin`, its shards by
/// `pytorch_model.bin.index.json`; the first of these that is there.
[[nodiscard]] ForeignTensors read_model_weights(const std::filesystem::path& directory);

/// Tensor name → file name, of a Hugging Face index. A name that leaves the directory is refused.
/// `what` begins errors.
[[nodiscard]] std::map<std::string, std::string> parse_shard_index(std::string_view json,
                                                                   std::string_view what);

/// A directory of torch.distributed.checkpoint (`.metadata` and `__R_K.distcp`): every tensor
/// whole, whatever ranks wrote it. The metadata's classes are read as data.
[[nodiscard]] ForeignContents read_dcp(const std::filesystem::path& directory);

enum class ForeignFormat : std::uint8_t { Model, SaveState, DeepSpeed, Dcp };

struct ForeignCheckpoint {
  ForeignFormat format = ForeignFormat::Model;
  std::string found;  ///< a sentence: "a DeepSpeed ZeRO-3 checkpoint of 2 ranks"
  /// "model", "optimizer" and, as far as they are there, "scheduler", "sampler", "random_states_0",
  /// "model_1", …
  ///
  /// A model's names are its parameters' and buffers'. The optimizer of DeepSpeed and DCP is
  /// "exp_avg.<parameter>", "step.<parameter>", …; of optimizer.bin it is "state.<number>.exp_avg",
  /// for that file holds no names.
  std::map<std::string, ForeignContents> sections;
  /// What was there and was not read, with the reason: files besides model and optimizer with more
  /// than numbers in them.
  std::vector<std::string> left_out;
};

/// ZeRO-1, 2 or 3: `directory` has the `…optim_states.pt`, or `latest` and the folder it names.
/// "model" holds the fp32 masters (put together from all ranks, padding removed), frozen parameters
/// and buffers as saved, shared parameters by each name.
[[nodiscard]] ForeignCheckpoint read_deepspeed(const std::filesystem::path& directory);

/// What Accelerate's save_state wrote, by DDP, FSDP or DeepSpeed.
[[nodiscard]] ForeignCheckpoint read_save_state(const std::filesystem::path& directory);

/// Whichever of these `directory` is. Throws Failure{FileNotFound} saying what was looked for.
[[nodiscard]] ForeignCheckpoint read_any(const std::filesystem::path& directory);

}  // namespace troupe
