#include "shared_segment.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <string>
#include <system_error>
#include <troupe/errors.hpp>
#include <utility>

namespace troupe {
namespace {

constexpr std::size_t kStep = 64 << 10;

[[noreturn]] void cannot(const char* what, int error) {
  const auto code = error == ENOMEM || error == ENOSPC ? Errc::OutOfMemory : Errc::StartFailed;
  throw Failure{code, std::string{"DataLoader: shared memory for a batch: "} + what + ": " + std::generic_category().message(error)};
}

}  // namespace

OwnFd::~OwnFd() {
  if (fd_ >= 0) ::close(fd_);
}
OwnFd& OwnFd::operator=(OwnFd&& other) noexcept {
  std::swap(fd_, other.fd_);
  return *this;
}
int OwnFd::release() noexcept { return std::exchange(fd_, -1); }

SharedSegment::SharedSegment() : fd_(memfd_create("troupe-batch", MFD_CLOEXEC)) {
  if (fd_.get() < 0) cannot("memfd_create", errno);
}
SharedSegment::SharedSegment(OwnFd fd) : fd_(std::move(fd)) {}
SharedSegment::~SharedSegment() {
  if (data_) ::munmap(data_, size_);
}

void SharedSegment::map(std::size_t size) {
  if (size == size_) return;
  void* data = data_ ? ::mremap(data_, size_, size, MREMAP_MAYMOVE) : ::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd_.get(), 0);
  if (data == MAP_FAILED) cannot("mmap", errno);
  data_ = data;
  size_ = size;
}

std::span<std::byte> SharedSegment::at_least(std::size_t size) {
  auto have = all().size();
  if (size > have) {
    have = (size + size / 4 + kStep - 1) / kStep * kStep;
    // Reserved, not only sized: a write that finds no memory would end the process.
    if (const int error = ::posix_fallocate(fd_.get(), 0, static_cast<off_t>(have))) cannot("fallocate", error);
    map(have);
  }
  return {static_cast<std::byte*>(data_), size_};
}

std::span<std::byte> SharedSegment::all() {
  struct stat now {};
  if (::fstat(fd_.get(), &now) != 0) cannot("fstat", errno);
  if (now.st_size > 0) map(static_cast<std::size_t>(now.st_size));
  return {static_cast<std::byte*>(data_), size_};
}

}  // namespace troupe
