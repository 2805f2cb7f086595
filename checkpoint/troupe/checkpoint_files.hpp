#pragma once

#include <troupe/file_system.hpp>
#include <troupe/manifest.hpp>
#include <troupe/safetensors.hpp>

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

// A checkpoint on disk is the unsharded model: ranks write byte ranges of shared safetensors files, and read the ranges they
// need, whatever their number. Layout, digests and commit: docs/checkpoints.md.
//
// Bytes here are tensors' bytes as safetensors stores them: row-major, little-endian, without gaps.

namespace troupe {

// ---- What a rank writes ---------------------------------------------------------------------------------------------

/// A tensor of the whole, unsharded model.
struct TensorSpec {
  std::string name;
  SafetensorsDtype dtype = SafetensorsDtype::F32;
  std::vector<std::uint64_t> shape;
  bool operator==(const TensorSpec&) const = default;
};

/// Bytes [begin, begin + bytes.size()) of tensors[tensor], borrowed.
struct TensorRange {
  std::size_t tensor = 0;
  std::uint64_t begin = 0;
  std::span<const std::byte> bytes;
  bool finite = false;  ///< a snapshot of it that holds infinity or no number is none: of parameters and moments
};

/// One logical file that all writers write together: <stem>.safetensors, or above `max_shard_bytes` of tensor data
/// <stem>-00001-of-0000N.safetensors and so on with <stem>.safetensors.index.json, as Hugging Face splits and names them.
struct SharedTensorFile {
  std::string stem;                             ///< "model", "model_1", "optimizer"
  std::vector<TensorSpec> tensors;              ///< equal on all writers, in any order; names are unique
  std::map<std::string, std::string> metadata;  ///< equal on all writers; {"format": "pt"} is what transformers asks for
  std::vector<TensorRange> mine;                ///< over all writers these cover every byte exactly once
  std::uint64_t max_shard_bytes = 0;            ///< 0: never split. A tensor is never split: a larger one has a file of its own
};

struct LoaderRecord {
  std::int64_t epoch = 0;
  std::int64_t num_batches = 0;       ///< of this epoch, handed out by each rank
  std::int64_t samples_consumed = 0;  ///< of this epoch, by all ranks
  std::uint64_t shared_seed = 0;
  bool operator==(const LoaderRecord&) const = default;
};

/// What is the same on every rank.
struct TrainState {
  std::int64_t step = 0;
  std::int64_t epoch = 0;
  std::int32_t world_size = 1;
  std::string strategy;
  std::vector<std::vector<double>> learning_rates;  ///< by optimizer, by parameter group
  std::vector<std::int64_t> scheduler_steps;
  std::vector<LoaderRecord> loaders;
  double loss_scale = 0;  ///< 0: no scaler
  std::int64_t loss_scale_good_steps = 0;
  std::int32_t loss_scale_hysteresis = 1;
  std::map<std::string, std::string> objects;  ///< bytes of user objects and of whatever else the writer keeps, by name
  bool operator==(const TrainState&) const = default;
};

/// What is a rank's own.
struct RankState {
  std::string rng;                             ///< opaque here
  std::map<std::string, std::string> objects;  ///< by name
  bool operator==(const RankState&) const = default;
};

/// All that one rank contributes.
struct CheckpointPart {
  int rank = 0;  ///< 0 to num_writers - 1; 0 also writes headers and index files
  int num_writers = 1;
  std::uint64_t attempt = 0;            ///< parts of different attempts are never committed together
  std::vector<SharedTensorFile> files;  ///< the same stems, tensors and metadata on all writers
  std::optional<TrainState> state;      ///< rank 0's is stored
  RankState rank_state;
};

/// "rank_00003.troupe": what a rank wrote, and its state. Written last: without it the rank has not acknowledged.
[[nodiscard]] std::string rank_file_name(int rank);

/// Writes the part into `directory`, which all writers of the checkpoint share and which is made if its parent exists. When
/// it returns the bytes are durable; the names of the files are when the commit returns.
/// Bytes are read straight from the spans. Extra memory: 16 MiB. Threads: ranks may call this for one directory at once.
/// Throws Failure{InvalidArgument} naming tensor and stem for ranges that overlap, leave their tensor, or names that are no good;
/// Failure{StorageUnavailable} when the disk refuses: the part is then not acknowledged, and the directory is to be given up.
void write_part(const std::filesystem::path& directory, const CheckpointPart& part, FileSystem& file_system = real_file_system());

/// Page-aligned memory that snapshots take and give back. Must outlive them. Threads: any.
class SnapshotPool {
 public:
  SnapshotPool();
  ~SnapshotPool();
  SnapshotPool(const SnapshotPool&) = delete;
  SnapshotPool& operator=(const SnapshotPool&) = delete;

  /// Takes memory for a snapshot of `bytes` from the system now, so that the first one is as quick as the next.
  void reserve(std::size_t bytes);
  /// Bytes held, in use or not.
  [[nodiscard]] std::size_t bytes() const;

  struct Impl;

 private:
  friend class PartSnapshot;
  std::unique_ptr<Impl> impl_;
};

/// A copy of a part, to be written later and elsewhere: the step pays for one memcpy, and `part`'s memory is free again.
///
/// Threads: one caller at a time, any thread.
class PartSnapshot {
 public:
  /// Throws as `write_part` for a part that is no good; nothing is copied then.
  PartSnapshot(const CheckpointPart& part, SnapshotPool& pool);
  ~PartSnapshot();
  PartSnapshot(PartSnapshot&&) noexcept;
  PartSnapshot& operator=(PartSnapshot&&) noexcept;

  /// As `write_part`, from the copy and without another one.
  void write(const std::filesystem::path& directory, FileSystem& file_system = real_file_system());
  [[nodiscard]] std::size_t bytes() const noexcept;  ///< of tensors

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// ---- What a rank reads ----------------------------------------------------------------------------------------------

/// Bytes [begin, begin + into.size()) of a tensor, wanted in `into`.
struct ReadRange {
  std::string tensor;
  std::uint64_t begin = 0;
  std::span<std::byte> into;
};

/// A committed checkpoint, or a plain Hugging Face directory without a manifest: then there is only what lies in model.safetensors
/// or its shards, and nothing can be verified but the headers. Or a snapshot in memory (troupe/memory_snapshot.hpp), whole: its bytes
/// have no digests, and it has no manifest file.
///
/// The constructor verifies the manifest, every file's presence and size, and all rank files; bytes of tensors are verified,
/// segment by segment, when they are read. Symbolic links below the directory are refused.
/// Threads: const members from any thread. Errors: Failure{FileNotFound} when there is no such directory; Failure{FileCorrupt}
/// naming file, tensor and byte range; Failure{NotFound} naming a stem, tensor or rank that is not there, or where the whole is of what is a node's part.
class CheckpointReader {
 public:
  explicit CheckpointReader(std::filesystem::path directory, FileSystem& file_system = real_file_system());
  ~CheckpointReader();
  CheckpointReader(CheckpointReader&&) noexcept;
  CheckpointReader& operator=(CheckpointReader&&) noexcept;

  /// False for a plain Hugging Face directory.
  [[nodiscard]] bool has_manifest() const noexcept;
  [[nodiscard]] const std::filesystem::path& directory() const noexcept;
  /// Without a manifest: the tensors and files found; no segments.
  [[nodiscard]] const Manifest& manifest() const noexcept;
  /// Nothing when the files were made without `write_part`.
  [[nodiscard]] const std::optional<TrainState>& state() const noexcept;
  /// Throws Failure{NotFound} when rank `rank` wrote none.
  [[nodiscard]] const RankState& rank_state(int rank) const;
  [[nodiscard]] std::vector<std::string> stems() const;
  /// In the order of the files; empty for a stem that is not there.
  [[nodiscard]] std::vector<TensorSpec> tensors(std::string_view stem) const;

  /// Fills all `ranges`, in file order, with at most two threads. Every byte handed out was verified. Extra memory: two segments a
  /// thread. After a throw the contents of `ranges` are unspecified.
  void read(std::string_view stem, std::span<const ReadRange> ranges) const;
  /// Verifies every byte of one file of the manifest, or of all. Failure{FileCorrupt} names the first damage.
  void verify(std::string_view file) const;
  void verify() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

/// Everything that is wrong with a checkpoint, a sentence each; empty: every byte verifies. Does not throw for damage.
[[nodiscard]] std::vector<std::string> verify_checkpoint(const std::filesystem::path& directory,
                                                         FileSystem& file_system = real_file_system());

}  // namespace troupe
