#include "arena.hpp"

#include <fcntl.h>
#include <linux/falloc.h>
#include <unistd.h>

#include <bit>
#include <cerrno>
#include <cstring>

namespace troupe::detail {

namespace {

constexpr std::size_t kPage = 4096;
constexpr std::size_t kAlign = 64;
/// Blocks from this size on are page-aligned, reserved when taken and given back to the system when freed.
constexpr std::size_t kLarge = std::size_t{1} << 20;
/// Temporaries kept for the next collective.
constexpr std::size_t kTemporaryBytes = std::size_t{256} << 20;

std::size_t round_up(std::size_t bytes, std::size_t to) { return (bytes + to - 1) / to * to; }
std::size_t block_bytes(std::size_t bytes) { return round_up(std::max<std::size_t>(bytes, 1), bytes >= kLarge ? kPage : kAlign); }

}  // namespace

Arena::Arena(std::shared_ptr<SharedState> state, int fd, int rank)
    : state_(std::move(state)),
      fd_(fcntl(fd, F_DUPFD_CLOEXEC, 3)),
      begin_(state_->arena(rank)),
      file_offset_(static_cast<std::size_t>(begin_ - reinterpret_cast<std::byte*>(&state_->header()))) {
  if (fd_ < 0) throw Failure{Errc::StartFailed, std::string{"shared memory group: "} + std::strerror(errno) + " (see ulimit -n)"};
  free_.emplace(0, state_->header().arena_bytes);
}

Arena::~Arena() { close(fd_); }

std::size_t Arena::take(std::size_t bytes) {
  const std::lock_guard lock{mutex_};
  const auto align = bytes >= kLarge ? kPage : kAlign;
  for (auto it = free_.begin(); it != free_.end(); ++it) {
    const auto [offset, size] = *it;
    const auto at = round_up(offset, align);
    if (at + bytes > offset + size) continue;
    free_.erase(it);
    if (at > offset) free_.emplace(offset, at - offset);
    if (offset + size > at + bytes) free_.emplace(at + bytes, offset + size - at - bytes);
    return at;
  }
  throw Failure{Errc::StartFailed, "shared memory: no " + std::to_string(bytes >> 20) + " MiB left of a rank's " +
                                       std::to_string(state_->header().arena_bytes >> 20) + " MiB"};
}

std::shared_ptr<void> Arena::allocate(std::size_t bytes) {
  const auto size = block_bytes(bytes);
  const auto offset = take(size);
  // Reserves the pages now: running out of memory is an exception here, a SIGBUS later.
  if (size >= kLarge && fallocate(fd_, 0, static_cast<off_t>(file_offset_ + offset), static_cast<off_t>(size)) != 0) {
    const int error = errno;
    release(offset, size);
    throw Failure{Errc::StartFailed, "shared memory: cannot reserve " + std::to_string(size >> 20) + " MiB: " + std::strerror(error)};
  }
  return {begin_ + offset, [self = shared_from_this(), offset, size](void*) {
            self->clear(offset, size);
            self->release(offset, size);
          }};
}

void* Arena::allocate_for_good(std::size_t bytes) { return begin_ + take(block_bytes(bytes)); }

void Arena::clear(std::size_t offset, std::size_t bytes) noexcept {
  if (bytes >= kLarge && fallocate(fd_, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, static_cast<off_t>(file_offset_ + offset),
                                   static_cast<off_t>(bytes)) == 0)
    return;
  std::memset(begin_ + offset, 0, bytes);
}

void Arena::release(std::size_t offset, std::size_t bytes) noexcept {
  const std::lock_guard lock{mutex_};
  auto next = free_.lower_bound(offset);
  if (next != free_.end() && offset + bytes == next->first) {
    bytes += next->second;
    next = free_.erase(next);
  }
  if (next != free_.begin()) {
    const auto before = std::prev(next);
    if (before->first + before->second == offset) {
      before->second += bytes;
      return;
    }
  }
  free_.emplace_hint(next, offset, bytes);
}

std::shared_ptr<void> Arena::temporary(std::size_t bytes) {
  const auto wanted = block_bytes(std::bit_ceil(std::max<std::size_t>(bytes, kPage)));
  std::pair<std::size_t, std::size_t> block{0, wanted};
  {
    const std::lock_guard lock{temporaries_mutex_};
    if (const auto found = temporaries_.find(wanted); found != temporaries_.end()) {
      block = found->second;
      temporary_bytes_ -= wanted;
      temporaries_.erase(found);
    } else {
      block.first = take(wanted);
    }
  }
  return {begin_ + block.first, [self = shared_from_this(), block](void*) {
            const std::lock_guard lock{self->temporaries_mutex_};
            if (self->temporary_bytes_ + block.second <= kTemporaryBytes) {
              self->temporary_bytes_ += block.second;
              self->temporaries_.emplace(block.second, block);
            } else {
              self->clear(block.first, block.second);
              self->release(block.first, block.second);
            }
          }};
}

}  // namespace troupe::detail
