#pragma once

#include <troupe/buffer.hpp>

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

namespace troupe {

/// What a rank keeps whole and what it keeps a share of; each shards what the one before it does, and more.
enum class ShardingStrategy : std::uint8_t {
  Replicate,       ///< nothing is sharded: DDP, ZeRO-0, NO_SHARD
  ShardOptimizer,  ///< optimizer state: ZeRO-1
  ShardGradients,  ///< and gradients: ZeRO-2
  ShardParameters  ///< and parameters: ZeRO-3, FULL_SHARD, SHARD_GRAD_OP (with reshard_after_forward = false)
};

/// Which modules are units: what is gathered, freed and reduced as one.
struct WrapPolicy {
  enum class Kind : std::uint8_t {
    Units,    ///< every module called through TROUPE_UNIT
    ByClass,  ///< those of `classes` (TRANSFORMER_BASED_WRAP)
    BySize,   ///< those with at least `min_num_params` parameters that no unit inside them has (SIZE_BASED_WRAP)
    NoWrap    ///< the whole model
  };
  Kind kind = Kind::Units;
  std::vector<std::string> classes;  ///< class names without namespace and "Impl"
  std::int64_t min_num_params = 100'000'000;
};

/// Where tensors wait that the step does not need at once.
struct Offload {
  enum class Place : std::uint8_t { None, Host, Disk };
  Place place = Place::None;
  std::filesystem::path path;                   ///< Disk: an existing directory; each rank makes its own file there
  bool pin_memory = true;                       ///< Host, with a GPU
  std::int64_t chunk_bytes = 16 * 1024 * 1024;  ///< what moves at once
  int num_buffers = 4;                          ///< chunks under way at once
};

/// How a model is spread over ranks. Everything that DeepSpeed's and FSDP's settings come down to.
struct ShardingOptions {
  ShardingStrategy strategy = ShardingStrategy::Replicate;
  /// Hybrid (HSDP): ranks that share one copy, consecutive ones; 0: all. Must divide the world size.
  int shard_group_size = 0;
  /// ShardParameters: free a unit between its forward and its backward.
  bool reshard_after_forward = true;
  WrapPolicy wrap{};
  /// Elements of gradients that are reduced as one, where units do not decide.
  std::int64_t reduce_bucket_elements = 6'553'600;  // 25 MiB of fp32, as DDP's buckets
  /// ShardParameters: a parameter of at most this many elements is kept whole.
  std::int64_t persistence_threshold = 0;
  bool forward_prefetch = true;   ///< gather the next unit during a unit's forward
  bool backward_prefetch = true;  ///< and the one before it during its backward

  std::optional<DType> param_dtype;   ///< of gathered parameters, so of computing; none: as the model has them
  std::optional<DType> reduce_dtype;  ///< gradients are rounded to it once reduced; none: fp32, and sums always add in fp32
  std::optional<DType> buffer_dtype;  ///< of module buffers of floating point; none: as they are

  Offload offload_optimizer{};  ///< its state; to disk, with it masters of another type than what is gathered
  Offload offload_params{};     ///< to disk: ShardParameters only; masters, which are read before each gather
  bool activation_checkpointing = false;          ///< units run again in backward instead of keeping their activations
  bool activation_checkpointing_offload = false;  ///< what is kept lies in host memory
  /// Ranks compare every collective of parameters and gradients before it runs, and name what differs; nothing overlaps.
  bool debug = false;
};

/// Dynamic loss scaling for fp16.
struct LossScale {
  enum class Policy : std::uint8_t {
    GradScaler,  ///< torch.amp.GradScaler
    DeepSpeed    ///< DeepSpeed's DynamicLossScaler
  };
  Policy policy = Policy::GradScaler;
  bool dynamic = true;           ///< else `initial` is kept
  double initial = 65536;
  double growth_factor = 2;
  double backoff_factor = 0.5;
  std::int64_t growth_interval = 2000;  ///< good steps until it grows; DeepSpeed's loss_scale_window
  int hysteresis = 1;                   ///< DeepSpeed: overflows until it shrinks
  bool consecutive_hysteresis = false;  ///< DeepSpeed: every good step refills the hysteresis
  double minimum = 0;                   ///< DeepSpeed: min_loss_scale; an overflow at it ends the run
};

}  // namespace troupe
