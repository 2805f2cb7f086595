#include "shared_state.hpp"

#include "packed.hpp"

#include <fcntl.h>
#include <linux/futex.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <climits>
#include <cstring>
#include <numeric>
#include <thread>

namespace troupe::detail {

namespace {

constexpr std::uint64_t kMagic = 0x6d6f632d72747274;  // "trtr-com"
constexpr std::uint32_t kVersion = 4;
constexpr std::size_t kPage = 4096;
/// Address space, not memory: pages come when touched.
constexpr std::size_t kArenaBytes = std::size_t{16} << 30;
constexpr std::size_t kArenaTotal = std::size_t{16} << 40;

constexpr std::size_t ranks_offset() { return (sizeof(Header) + 63) / 64 * 64; }
std::size_t slots_offset(int size) { return ranks_offset() + sizeof(RankState) * static_cast<std::size_t>(size); }
std::size_t records_offset(int size) { return slots_offset(size) + sizeof(Slot) * kSlots; }
std::size_t control_bytes(int size) {
  const auto bytes = records_offset(size) + sizeof(Record) * kSlots * static_cast<std::size_t>(size);
  return (bytes + kPage - 1) / kPage * kPage;
}

[[noreturn]] void cannot(const std::string& what, std::size_t bytes) {
  throw Failure{Errc::StartFailed, "shared memory group: " + what + " of " + std::to_string(bytes >> 20) + " MiB: " +
                                       std::strerror(errno) + " (see ulimit -v, ulimit -n, ulimit -f, vm.overcommit_memory)"};
}

std::vector<int> all_ranks(int size) {
  std::vector<int> ranks(static_cast<std::size_t>(size));
  std::iota(ranks.begin(), ranks.end(), 0);
  return ranks;
}

/// How often a rank of a split group looks whether the group it came from has ended.
constexpr std::chrono::milliseconds kLookAtParent{20};

}  // namespace

Mapping::Mapping(int fd, std::size_t size) : bytes(size) {
  const int flags = (fd < 0 ? MAP_PRIVATE | MAP_ANONYMOUS : MAP_SHARED) | MAP_NORESERVE;
  void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, flags, fd, 0);
  if (memory == MAP_FAILED) cannot("mapping", bytes);
  base = static_cast<std::byte*>(memory);
}

Mapping::~Mapping() { munmap(base, bytes); }

std::size_t SharedState::bytes_for(int size) noexcept { return control_bytes(size); }

std::shared_ptr<SharedState> SharedState::of_threads(int size, std::chrono::milliseconds timeout) {
  const auto bytes = control_bytes(size);
  auto memory = std::make_shared<Mapping>(-1, bytes);
  std::shared_ptr<SharedState> state{new SharedState{memory, memory->base}};
  state->lay_out(size, timeout, 0, 0);
  state->attach();
  return state;
}

std::shared_ptr<SharedState> SharedState::create(int fd, int size, std::chrono::milliseconds timeout) {
  const auto control = control_bytes(size);
  const auto arena = std::min(kArenaBytes, kArenaTotal / static_cast<std::size_t>(size) / kPage * kPage);
  const auto bytes = control + arena * static_cast<std::size_t>(size);
  if (ftruncate(fd, static_cast<off_t>(bytes)) != 0) cannot("a file", bytes);
  // Without these a peer could shrink the file and kill everybody by SIGBUS.
  if (fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) != 0) cannot("sealing", bytes);
  auto memory = std::make_shared<Mapping>(fd, bytes);
  std::shared_ptr<SharedState> state{new SharedState{memory, memory->base}};
  (void)madvise(state->base_, bytes, MADV_DONTDUMP);
  state->lay_out(size, timeout, control, arena);
  state->attach();
  return state;
}

std::shared_ptr<SharedState> SharedState::of_file(int fd, int size, std::chrono::milliseconds timeout) {
  const auto bytes = control_bytes(size);
  struct stat info{};
  if (fstat(fd, &info) != 0 || (info.st_size != 0 && info.st_size != static_cast<off_t>(bytes)))
    throw Failure{Errc::ProtocolError, "the meeting place belongs to a group of another size"};
  if (ftruncate(fd, static_cast<off_t>(bytes)) != 0) cannot("a file", bytes);
  auto memory = std::make_shared<Mapping>(fd, bytes);
  std::shared_ptr<SharedState> state{new SharedState{memory, memory->base}};
  state->lay_out(size, timeout, 0, 0);  // every rank writes the same values
  state->attach();
  state->private_ = false;
  return state;
}

std::shared_ptr<SharedState> SharedState::of_file(int fd, std::shared_ptr<SharedState> parent, const std::vector<int>& members,
                                                  std::chrono::milliseconds timeout) {
  auto state = of_file(fd, static_cast<int>(members.size()), timeout);
  state->be_child_of(std::move(parent), members);
  return state;
}

std::shared_ptr<SharedState> SharedState::child(std::pair<std::uint64_t, int> key, const std::vector<int>& members,
                                                std::chrono::milliseconds timeout) {
  const std::lock_guard lock{children_mutex_};
  std::erase_if(children_, [](const auto& entry) { return entry.second.expired(); });
  auto& entry = children_[key];
  auto state = entry.lock();
  if (!state) {
    entry = state = of_threads(static_cast<int>(members.size()), timeout);
    state->be_child_of(shared_from_this(), members);
  }
  return state;
}

std::shared_ptr<SharedState> SharedState::child_at(std::uint64_t address, const std::vector<int>& members) {
  std::shared_ptr<SharedState> state{new SharedState{memory_, resolve(address)}};
  state->attach();
  state->be_child_of(shared_from_this(), members);
  return state;
}

void SharedState::lay_out_at(void* memory, int size, std::chrono::milliseconds timeout) {
  SharedState{nullptr, static_cast<std::byte*>(memory)}.lay_out(size, timeout, 0, 0);
}

void SharedState::be_child_of(std::shared_ptr<SharedState> parent, const std::vector<int>& members) {
  parent_ = std::move(parent);
  space_ = parent_->space_;
  private_ = parent_->private_;
  members_.clear();
  for (const auto r : members) members_.push_back(parent_->members_[static_cast<std::size_t>(r)]);
}

void SharedState::know_members_as(const std::vector<int>& ranks) {
  const std::lock_guard lock{children_mutex_};  // threads share this object; the first of them writes
  if (members_ != ranks) members_ = ranks;
}

std::shared_ptr<SharedState> SharedState::open(int fd) {
  struct stat info{};
  if (fstat(fd, &info) != 0) throw Failure{Errc::ProtocolError, std::string{"shared memory group: "} + std::strerror(errno)};
  const auto bytes = static_cast<std::size_t>(info.st_size);
  Header read;
  if (bytes < sizeof(Header) || pread(fd, static_cast<void*>(&read), sizeof read, 0) != static_cast<ssize_t>(sizeof read) ||
      read.magic != kMagic)
    throw Failure{Errc::ProtocolError, "the descriptor is no shared memory group"};
  if (read.version != kVersion)
    throw Failure{Errc::ProtocolError, "shared memory group of version " + std::to_string(read.version) + ", this program has " +
                                           std::to_string(kVersion)};
  if (read.size < 1 || read.size > (1U << 16) || read.arena_offset != control_bytes(static_cast<int>(read.size)) ||
      bytes != read.arena_offset + read.arena_bytes * read.size)
    throw Failure{Errc::ProtocolError, "shared memory group: its size does not fit its header"};
  auto memory = std::make_shared<Mapping>(fd, bytes);
  std::shared_ptr<SharedState> state{new SharedState{memory, memory->base}};
  (void)madvise(state->base_, bytes, MADV_DONTDUMP);
  state->attach();
  return state;
}

void SharedState::lay_out(int size, std::chrono::milliseconds timeout, std::size_t arena_offset, std::size_t arena_bytes) {
  auto& h = header();  // fresh pages: every atomic starts at 0
  h.magic = kMagic;
  h.version = kVersion;
  h.size = static_cast<std::uint32_t>(size);
  h.arena_offset = arena_offset;
  h.arena_bytes = arena_bytes;
  h.timeout_ms = timeout.count();
}

void SharedState::attach() {
  size_ = static_cast<int>(header().size);
  ranks_ = reinterpret_cast<RankState*>(base_ + ranks_offset());
  slots_ = reinterpret_cast<Slot*>(base_ + slots_offset(size_));
  records_ = reinterpret_cast<Record*>(base_ + records_offset(size_));
  members_ = all_ranks(size_);
  if (header().arena_offset != 0) {
    space_ = base_;
    private_ = false;
  }
}

std::optional<std::uint64_t> SharedState::address_of(const void* data, std::size_t bytes) const noexcept {
  if (!between_processes()) return reinterpret_cast<std::uint64_t>(data);
  const auto* p = static_cast<const std::byte*>(data);
  if (bytes == 0) return 0;
  if (p < space_ || p + bytes > space_ + memory_->bytes) return std::nullopt;
  return static_cast<std::uint64_t>(p - space_);
}

void SharedState::say(int r, const Said& said) noexcept {
  constexpr auto order = std::memory_order_release;  // who reads one of these also sees `begun`
  auto& to = record(said.sequence, r);
  to.begun.store(said.sequence, std::memory_order_relaxed);
  to.what.store(pack(said.collective), order);
  to.bytes.store(said.collective.bytes, order);
  to.label_hash.store(said.label.hash, order);
  for (std::size_t i = 0; i < CollectiveLabel::kWords; ++i) to.label[i].store(said.label.words[i], order);
  to.sequence.store(said.sequence, order);
  rank(r).posted.store(said.sequence, order);
}

std::optional<Said> SharedState::said(int r, std::uint64_t sequence) noexcept {
  constexpr auto order = std::memory_order_acquire;
  auto& from = record(sequence, r);
  if (sequence == 0 || from.sequence.load(order) != sequence) return std::nullopt;
  Said said{sequence, unpack(from.what.load(order), from.bytes.load(order)), {}};
  said.label.hash = from.label_hash.load(order);
  for (std::size_t i = 0; i < CollectiveLabel::kWords; ++i) said.label.words[i] = from.label[i].load(order);
  if (from.begun.load(std::memory_order_relaxed) != sequence) return std::nullopt;
  return said;
}

void SharedState::note_finished(int r, std::uint64_t sequence, std::chrono::steady_clock::time_point now) noexcept {
  auto& state = rank(r);
  state.finished_at.store(now.time_since_epoch().count(), std::memory_order_relaxed);
  state.finished.store(sequence, std::memory_order_release);
}

void SharedState::announce() noexcept {
  auto& h = header();
  h.news.fetch_add(1, std::memory_order_seq_cst);
  if (h.sleepers.load(std::memory_order_seq_cst) == 0) return;
  const int operation = private_ ? FUTEX_WAKE_PRIVATE : FUTEX_WAKE;
  syscall(SYS_futex, &h.news, operation, INT_MAX, nullptr, nullptr, 0);
}

void SharedState::sleep(std::uint32_t seen, std::chrono::steady_clock::time_point until) noexcept {
  auto& h = header();
  auto left = until - std::chrono::steady_clock::now();
  if (parent_) left = std::min<std::chrono::steady_clock::duration>(left, kLookAtParent);
  if (left <= left.zero()) return;
  const auto seconds = std::chrono::duration_cast<std::chrono::seconds>(left);
  timespec limit{};
  limit.tv_sec = static_cast<time_t>(std::min<std::int64_t>(seconds.count(), 1'000'000));
  limit.tv_nsec = std::chrono::duration_cast<std::chrono::nanoseconds>(left - seconds).count();
  h.sleepers.fetch_add(1, std::memory_order_seq_cst);
  const int operation = private_ ? FUTEX_WAIT_PRIVATE : FUTEX_WAIT;
  syscall(SYS_futex, &h.news, operation, seen, &limit, nullptr, 0);
  h.sleepers.fetch_sub(1, std::memory_order_seq_cst);
}

void SharedState::fail(Errc code, const std::string& text) noexcept {
  auto& h = header();
  std::uint32_t fine = 0;
  if (!h.broken.compare_exchange_strong(fine, 1, std::memory_order_seq_cst)) return;
  h.broken_code = code;
  const auto length = std::min(text.size(), sizeof h.broken_text - 1);
  std::memcpy(h.broken_text, text.data(), length);
  h.broken_text[length] = '\0';
  h.broken.store(2, std::memory_order_seq_cst);
  announce();
}

Outcome SharedState::failure() noexcept {
  auto& h = header();
  if (h.broken.load(std::memory_order_seq_cst) == 0 && parent_) return parent_->failure();
  // Whoever writes the text may have been killed on the way: do not wait for it for long.
  const auto until = std::chrono::steady_clock::now() + std::chrono::milliseconds{20};
  while (h.broken.load(std::memory_order_seq_cst) == 1 && std::chrono::steady_clock::now() < until) std::this_thread::yield();
  if (h.broken.load(std::memory_order_seq_cst) != 2) return {Errc::Aborted, "a rank died while it ended the group"};
  return {h.broken_code, std::string{h.broken_text, strnlen(h.broken_text, sizeof h.broken_text)}};
}

}  // namespace troupe::detail
