#pragma once

#include <troupe/checkpoint_files.hpp>

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace troupe::detail {

/// What this rank holds of one tensor of the unsharded state: elements [first, first + count) of it, row-major.
struct StatePiece {
  std::string name;
  std::vector<std::string> aliases;  ///< of tied parameters: under which other files may have it
  at::ScalarType dtype = at::kFloat; ///< of the whole in the file, equal on all ranks
  std::vector<std::int64_t> sizes;   ///< likewise
  std::int64_t first = 0;
  std::int64_t count = 0;
  at::Tensor local;                  ///< 1-D, or the whole whatever its strides; undefined: `mapped`, or nothing (count 0)
  std::vector<std::span<const std::byte>> mapped;  ///< where it lies on disk: to read only
  std::function<void(const at::Tensor&)> put;      ///< takes values shaped as `local` would be; empty: they go into `local`
  bool finite = false;               ///< no snapshot may hold infinity, or what is no number, in it
  int num_holders = 1;               ///< ranks that hold these same elements …
  int holder = 0;                    ///< … and which of them this is; negative: the others write it
};

/// The file that all ranks write together, with this rank's share of the bytes: its own pieces, and of what several hold one
/// contiguous part, cut at pages. No bytes are copied, into `keep`, but those of tensors that are not row-major in memory or
/// of another type than the file wants.
[[nodiscard]] SharedTensorFile shared_file(std::string stem, const std::vector<StatePiece>& pieces, std::uint64_t max_shard_bytes,
                                           std::vector<at::Tensor>& keep);

/// One stem of a checkpoint, by name.
class StoredTensors {
 public:
  StoredTensors(const CheckpointReader& reader, std::string stem);
  [[nodiscard]] const std::vector<TensorSpec>& specs() const noexcept { return specs_; }
  /// nullptr when there is none.
  [[nodiscard]] const TensorSpec* find(std::string_view name) const noexcept;
  /// Under its name or an alias.
  [[nodiscard]] const TensorSpec* find(const StatePiece& piece) const noexcept;
  /// "DIR/model.safetensors: tensor NAME"
  [[nodiscard]] std::string where(const TensorSpec& spec) const;
  /// Throws Failure{InvalidArgument} naming file and tensor when the shape is another.
  void check_shape(const TensorSpec& spec, const StatePiece& piece) const;
  /// Fills pieces from the specs beside them. Straight into `local` where types and layout agree; else through memory for one
  /// piece. Throws Failure{FileCorrupt}; then some pieces are filled.
  struct Wanted {
    const TensorSpec* spec = nullptr;
    const StatePiece* piece = nullptr;
  };
  void read(std::span<const Wanted> wanted) const;
  /// The counts that tensors of one number hold, read at once. Throws Failure{FileCorrupt} for what is no such tensor.
  [[nodiscard]] std::vector<std::int64_t> read_counts(std::span<const TensorSpec* const> specs) const;

 private:
  const CheckpointReader& reader_;
  std::string stem_;
  std::vector<TensorSpec> specs_;
  std::vector<std::size_t> by_name_;
};

}  // namespace troupe::detail
