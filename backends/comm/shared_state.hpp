#pragma once

#include "request.hpp"

#include <atomic>
#include <chrono>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

namespace troupe::detail {

/// Collectives that may be under way at once.
constexpr std::uint64_t kSlots = 64;

/// What one rank said it calls. Its rank may write the next while others, who blame it, read: then the marks differ.
struct alignas(64) Record {
  std::atomic<std::uint64_t> begun;     ///< sequence that is being written
  std::atomic<std::uint64_t> sequence;  ///< of the latest collective posted here, from 1; 0: none yet
  std::atomic<std::uint64_t> what;      ///< packed
  std::atomic<std::uint64_t> bytes;
  std::uint64_t input;   ///< address in this process (threads) or offset in the memfd (processes)
  std::uint64_t output;  ///< these two are read only by ranks that met here
  std::atomic<std::uint64_t> label_hash;  ///< beside what ranks compare, in the same cache line
  std::atomic<std::uint64_t> label[CollectiveLabel::kWords];
};

/// A copy of what a record says.
struct Said {
  std::uint64_t sequence;
  Collective collective;
  CollectiveLabel label;
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
  std::atomic<std::uint64_t> posted;   ///< sequence of its latest collective
  std::atomic<std::uint64_t> finished;      ///< and of the latest that it saw the end of
  std::atomic<std::int64_t> finished_at;    ///< steady clock, which the processes of a host share
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
  char broken_text[4000];
};

/// Mapped memory, unmapped at the end.
struct Mapping {
  Mapping(int fd, std::size_t size);  ///< fd -1: of this process. Throws Failure{StartFailed}.
  ~Mapping();
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;
  std::byte* base;
  std::size_t bytes;
};

/// The memory in which the ranks of a group meet: anonymous for threads, a memfd's for processes. It holds no lock,
/// so a rank that dies anywhere leaves peers that still end at their deadline or at an abort.
///
/// A group made by `split` has a state of its own, which knows its parent's: when that is broken, so is it.
class SharedState : public std::enable_shared_from_this<SharedState> {
 public:
  /// For the threads of this process.
  [[nodiscard]] static std::shared_ptr<SharedState> of_threads(int size, std::chrono::milliseconds timeout);
  /// Lays a new group out in the memfd `fd`. Throws Failure{StartFailed}.
  [[nodiscard]] static std::shared_ptr<SharedState> create(int fd, int size, std::chrono::milliseconds timeout);
  /// A group without buffers, only to tell who is where: in the file `fd`, which every rank opens like this.
  [[nodiscard]] static std::shared_ptr<SharedState> of_file(int fd, int size, std::chrono::milliseconds timeout);
  /// The same, of a part of `parent`'s ranks.
  [[nodiscard]] static std::shared_ptr<SharedState> of_file(int fd, std::shared_ptr<SharedState> parent, const std::vector<int>& members,
                                                            std::chrono::milliseconds timeout);
  /// Maps a group that another process laid out. Throws Failure{ProtocolError, StartFailed}.
  [[nodiscard]] static std::shared_ptr<SharedState> open(int fd);
  /// A new group of `members`, threads of this process. `key` is the same for its ranks only; the first to ask makes it.
  [[nodiscard]] std::shared_ptr<SharedState> child(std::pair<std::uint64_t, int> key, const std::vector<int>& members,
                                                   std::chrono::milliseconds timeout);
  /// A new group of `members`, processes, in zeroed memory at `address` of this one's that one of them has laid out.
  [[nodiscard]] std::shared_ptr<SharedState> child_at(std::uint64_t address, const std::vector<int>& members);
  /// Lays out a group of `size` ranks in `memory` of `bytes_for(size)` bytes.
  static void lay_out_at(void* memory, int size, std::chrono::milliseconds timeout);
  [[nodiscard]] static std::size_t bytes_for(int size) noexcept;
  ~SharedState() = default;
  SharedState(const SharedState&) = delete;
  SharedState& operator=(const SharedState&) = delete;

  [[nodiscard]] Header& header() noexcept { return *reinterpret_cast<Header*>(base_); }
  [[nodiscard]] RankState& rank(int r) noexcept { return ranks_[r]; }
  [[nodiscard]] Slot& slot(std::uint64_t sequence) noexcept { return slots_[sequence % kSlots]; }
  [[nodiscard]] Record& record(std::uint64_t sequence, int r) noexcept {
    return records_[(sequence % kSlots) * static_cast<std::uint64_t>(size_) + static_cast<std::uint64_t>(r)];
  }
  /// Writes down that rank `r` calls this; the ranks must still count it in the slot.
  void say(int r, const Said& said) noexcept;
  /// The other way; nothing when the rank has gone on meanwhile, or never was there.
  [[nodiscard]] std::optional<Said> said(int r, std::uint64_t sequence) noexcept;
  void note_finished(int r, std::uint64_t sequence, std::chrono::steady_clock::time_point now) noexcept;
  [[nodiscard]] int size() const noexcept { return size_; }
  [[nodiscard]] bool between_processes() const noexcept { return space_ != nullptr; }
  /// Ranks of the first group that this one was split from, in its order: what people know the ranks by.
  [[nodiscard]] const std::vector<int>& members() const noexcept { return members_; }
  /// Lets people know the ranks by other numbers; the same from every rank, before the first collective.
  void know_members_as(const std::vector<int>& ranks);
  [[nodiscard]] bool is_split() const noexcept { return parent_ != nullptr; }
  [[nodiscard]] const SharedState& root() const noexcept { return parent_ ? parent_->root() : *this; }

  /// Where a peer finds this memory; nothing when it cannot.
  [[nodiscard]] std::optional<std::uint64_t> address_of(const void* data, std::size_t bytes) const noexcept;
  [[nodiscard]] std::byte* resolve(std::uint64_t address) const noexcept {
    return reinterpret_cast<std::byte*>(reinterpret_cast<std::uint64_t>(space_) + address);
  }
  /// Of rank `r` of a group of processes that is not split.
  [[nodiscard]] std::byte* arena(int r) const noexcept {
    const auto& h = *reinterpret_cast<const Header*>(base_);
    return base_ + h.arena_offset + static_cast<std::uint64_t>(r) * h.arena_bytes;
  }

  /// Tells every waiting rank to look again.
  void announce() noexcept;
  /// Returns when `news` is no longer `seen`, or at `until`.
  void sleep(std::uint32_t seen, std::chrono::steady_clock::time_point until) noexcept;
  /// The first call decides what the group died of.
  void fail(Errc code, const std::string& text) noexcept;
  [[nodiscard]] bool is_broken() noexcept {
    return header().broken.load(std::memory_order_seq_cst) != 0 || (parent_ && parent_->is_broken());
  }
  [[nodiscard]] Outcome failure() noexcept;

 private:
  SharedState(std::shared_ptr<Mapping> memory, std::byte* base) : memory_(std::move(memory)), base_(base) {}
  void lay_out(int size, std::chrono::milliseconds timeout, std::size_t arena_offset, std::size_t arena_bytes);
  void attach();
  void be_child_of(std::shared_ptr<SharedState> parent, const std::vector<int>& members);

  std::shared_ptr<Mapping> memory_;
  std::byte* base_;
  std::byte* space_ = nullptr;  ///< what addresses count from: the memfd's first byte, for processes
  bool private_ = true;         ///< all ranks are threads of this process
  int size_ = 0;
  RankState* ranks_ = nullptr;
  Slot* slots_ = nullptr;
  Record* records_ = nullptr;
  std::shared_ptr<SharedState> parent_;
  std::vector<int> members_;
  std::mutex children_mutex_;
  std::map<std::pair<std::uint64_t, int>, std::weak_ptr<SharedState>> children_;  ///< of threads
};

}  // namespace troupe::detail
