#pragma once

#include "optim/scratch_file.hpp"

#include <io/async_io.hpp>
#include <io/page_buffer.hpp>

#include <troupe/memory_account.hpp>
#include <troupe/optimizer.hpp>
#include <troupe/sharding_options.hpp>

#include <ATen/core/Tensor.h>

#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <span>
#include <vector>

namespace troupe::detail {

/// Shards on disk: regions of one unnamed file of a rank, each read and written whole, in chunks of which several are under way
/// at once. A region has memory only between `start_read` (or `fresh`) and the end of `write_back` or `let_go`.
///
/// Threads: the rank's own. Errors: Failure{FileNotFound, StorageUnavailable} naming directory and rank.
class ShardFile {
 public:
  ShardFile(const Offload& offload, int rank, MemoryAccount account);

  /// A region of at least `bytes`, whose room on the device is taken now.
  [[nodiscard]] std::size_t add(std::int64_t bytes);
  /// Memory for a region, its content undefined.
  [[nodiscard]] std::byte* fresh(std::size_t region);
  void start_read(std::size_t region);
  /// What `start_read` began, there.
  [[nodiscard]] std::byte* finish_read(std::size_t region);
  /// Begins to write a region's memory, which is gone afterwards. Waits for the write before it.
  void write_back(std::size_t region);
  void let_go(std::size_t region);
  /// What was last written of a region, mapped to be read; valid while this object lives and until the next `write_back`.
  [[nodiscard]] const std::byte* mapped(std::size_t region);

 private:
  enum class State { Away, Reading, Here, Writing };
  struct Region {
    std::int64_t offset = 0;
    std::int64_t bytes = 0;
    State state = State::Away;
    std::int64_t begun = 0;  // bytes of the move whose chunks have begun
    int under_way = 0;       // chunks
    PageBuffer memory{};
    MemoryAccount::Charge charge{};
  };

  void take_memory(Region& region);
  void drop_memory(Region& region);
  void move(std::size_t region, State direction);
  void begin_chunks();
  void wait(std::size_t region);

  ScratchFile file_;
  MemoryAccount account_;
  std::int64_t chunk_bytes_;
  std::int64_t end_ = 0;
  std::vector<Region> regions_;
  std::deque<std::size_t> waiting_;        // regions with chunks that have not begun, in order
  std::vector<std::ptrdiff_t> of_ticket_;  // whose chunk it is; -1: free
  std::shared_ptr<void> mapping_;          // of the file up to mapped_end_
  std::int64_t mapped_end_ = 0;
  std::unique_ptr<AsyncIo> io_;            // last: it ends before memory and file
};

/// A flat shard [S] that lies in a ShardFile. The tensor keeps one StorageImpl whose bytes come and go, so that its views, the
/// pieces that optimizers update, stay valid.
///
/// Threads: the rank's own. May outlive the engine, with the optimizer that updates it.
class DiskShard final : public Residence {
 public:
  /// @param copy  undefined, or [S] in memory, of any type: gets the elements whenever they have changed.
  DiskShard(std::shared_ptr<ShardFile> file, std::int64_t numel, at::ScalarType type, at::Tensor copy);
  ~DiskShard() override;

  [[nodiscard]] const at::Tensor& tensor() const noexcept { return tensor_; }
  [[nodiscard]] const at::Tensor& copy() const noexcept { return copy_; }
  /// Elements of undefined value, to be set before `leave`.
  void enter_empty();
  void start_enter() override;
  void enter() override;
  void leave(bool changed) override;
  /// Elements as they were last written, to be read until they change.
  [[nodiscard]] std::span<const std::byte> mapped(std::int64_t first, std::int64_t count);

 private:
  void show(std::byte* memory);
  std::shared_ptr<ShardFile> file_;
  std::size_t region_;
  at::Tensor tensor_, copy_;
};

}  // namespace troupe::detail
