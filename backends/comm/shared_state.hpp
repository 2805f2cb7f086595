#pragma once

#include <troupe/communicator.hpp>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>

namespace troupe::detail {

enum class Call : std::uint8_t { AllReduce, ReduceScatter, AllGather, Broadcast, Barrier };

/// Collectives that may be under way at once.
constexpr std::uint64_t kSlots = 64;

/// What one rank said it calls. Written by its rank, read by all once everyone has posted.
struct alignas(64) Record {
  std::atomic<std::uint64_t> sequence;  ///< of the latest collective posted here, from 1; 0: none yet
  Call call;
  ReduceOp op;
  DType dtype;
  std::int32_t root;
  std::uint64_t bytes;
  std::uint64_t input;  ///< address in this process (threads) or offset in the memfd (processes)
  std::uint64_t output;
};

/// Where the ranks meet for collective s (slot s % kSlots). A rank posts s only after its own s - kSlots is finished,
/// so nobody can still be inside the slot's last collective when its last poster resets `claimed` and `done`.
struct Slot {
  alignas(64) std::atomic<std::uint64_t> posted;    ///< ranks that have posted here, ever
  alignas(64) std::atomic<std::uint64_t> ready;     ///< sequence that all ranks have posted
  std::atomic<std::uint64_t> finished;              ///< sequence whose every chunk is done
  alignas(64) std::atomic<std::uint32_t> claimed;   ///< next chunk that nobody works on
  alignas(64) std::atomic<std::uint32_t> done;      ///< chunks done
};

struct alignas(64) RankState {
  std::atomic<std::uint32_t> working;  ///< inside a chunk: may touch peers' buffers
  std::atomic<std::uint32_t> left;     ///< gave up its seat
  std::atomic<std::uint32_t> joined;   ///< took its seat
};

struct Header {
  std::uint64_t magic;
  std::uint32_t version;
  std::uint32_t size;
  std::uint64_t arena_offset;  ///< of rank 0's arena from the start; 0: threads, which need none
  std::uint64_t arena_bytes;   ///< of each rank
  std::int64_t timeout_ms;
  alignas(64) std::atomic<std::uint32_t> news;      ///< changes at every event a rank may wait for; a futex
  alignas(64) std::atomic<std::uint32_t> sleepers;  ///< ranks that wait on `news`
  alignas(64) std::atomic<std::uint32_t> broken;    ///< 0: fine, 1: text is being written, 2: broken
  std::atomic<std::uint32_t> num_left;
  Errc broken_code;
  char broken_text[1984];
};

/// The memory in which the ranks of a group meet: anonymous for threads, a memfd's for processes. It holds no lock,
/// so a rank that dies anywhere leaves peers that still end at their deadline or at an abort.
class SharedState {
 public:
  /// For the threads of this process.
  [[nodiscard]] static std::shared_ptr<SharedState> of_threads(int size, std::chrono::milliseconds timeout);
  /// Lays a new group out in the memfd `fd`. Throws Failure{StartFailed}.
  [[nodiscard]] static std::shared_ptr<SharedState> create(int fd, int size, std::chrono::milliseconds timeout);
  /// A group without buffers, only to tell who is where: in the file `fd`, which every rank opens like this.
  [[nodiscard]] static std::shared_ptr<SharedState> of_file(int fd, int size, std::chrono::milliseconds timeout);
  /// Maps a group that another process laid out. Throws Failure{ProtocolError, StartFailed}.
  [[nodiscard]] static std::shared_ptr<SharedState> open(int fd);
  ~SharedState();
  SharedState(const SharedState&) = delete;
  SharedState& operator=(const SharedState&) = delete;

  [[nodiscard]] Header& header() noexcept { return *reinterpret_cast<Header*>(base_); }
  [[nodiscard]] RankState& rank(int r) noexcept { return ranks_[r]; }
  [[nodiscard]] Slot& slot(std::uint64_t sequence) noexcept { return slots_[sequence % kSlots]; }
  [[nodiscard]] Record& record(std::uint64_t sequence, int r) noexcept {
    return records_[(sequence % kSlots) * static_cast<std::uint64_t>(size_) + static_cast<std::uint64_t>(r)];
  }
  [[nodiscard]] int size() const noexcept { return size_; }
  [[nodiscard]] bool between_processes() const noexcept { return arena_begin_ != nullptr; }

  /// Where a peer finds this memory; nothing when it cannot.
  [[nodiscard]] std::optional<std::uint64_t> address_of(const void* data, std::size_t bytes) const noexcept;
  [[nodiscard]] std::byte* resolve(std::uint64_t address) const noexcept {
    return reinterpret_cast<std::byte*>(between_processes() ? reinterpret_cast<std::uint64_t>(base_) + address : address);
  }
  [[nodiscard]] std::byte* arena(int r) const noexcept {
    return arena_begin_ + static_cast<std::uint64_t>(r) * reinterpret_cast<const Header*>(base_)->arena_bytes;
  }

  /// Tells every waiting rank to look again.
  void announce() noexcept;
  /// Returns when `news` is no longer `seen`, or at `until`.
  void sleep(std::uint32_t seen, std::chrono::steady_clock::time_point until) noexcept;
  /// The first call decides what the group died of.
  void fail(Errc code, const std::string& text) noexcept;
  [[nodiscard]] bool is_broken() noexcept { return header().broken.load(std::memory_order_seq_cst) != 0; }
  [[nodiscard]] Outcome failure() noexcept;

 private:
  SharedState(std::byte* base, std::size_t bytes);
  void lay_out(int size, std::chrono::milliseconds timeout, std::size_t arena_offset, std::size_t arena_bytes);
  void attach();

  std::byte* base_;
  std::size_t bytes_;
  std::byte* arena_begin_ = nullptr;
  bool private_ = true;  ///< all ranks are threads of this process
  int size_ = 0;
  RankState* ranks_ = nullptr;
  Slot* slots_ = nullptr;
  Record* records_ = nullptr;
};

}  // namespace troupe::detail
