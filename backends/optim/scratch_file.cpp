#include "scratch_file.hpp"

#include <troupe/errors.hpp>

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

namespace troupe::detail {

namespace {

/// A file of no name, or one that loses it at once where the file system has no O_TMPFILE.
int open_unnamed(const std::filesystem::path& directory, int rank, int flags) {
  const int fd = ::open(directory.c_str(), O_TMPFILE | O_RDWR | O_CLOEXEC | flags, 0600);
  if (fd >= 0 || (errno != EOPNOTSUPP && errno != EISDIR)) return fd;
  const auto path = directory / (".troupe_offload." + std::to_string(::getpid()) + "." + std::to_string(rank));
  const int named = ::open(path.c_str(), O_CREAT | O_EXCL | O_RDWR | O_CLOEXEC | flags, 0600);
  if (named >= 0) ::unlink(path.c_str());
  return named;
}

}  // namespace

ScratchFile::ScratchFile(const std::filesystem::path& directory, int rank)
    : where_("optimizer offload: rank " + std::to_string(rank) + "'s file in " + directory.string()) {
  std::error_code ignored;
  if (!std::filesystem::is_directory(directory, ignored)) {
    throw Failure{Errc::FileNotFound, where_ + ": there is no such directory; make it, or set another offload path"};
  }
  fd_ = open_unnamed(directory, rank, O_DIRECT);
  if (fd_ < 0 && errno == EINVAL) fd_ = open_unnamed(directory, rank, 0);  // through the page cache
  if (fd_ < 0) check(errno, "made");
}

ScratchFile::~ScratchFile() {
  if (fd_ >= 0) ::close(fd_);
}

void ScratchFile::reserve(std::int64_t bytes) {
  if (bytes <= room_) return;
  int error = ::fallocate(fd_, 0, 0, bytes) == 0 ? 0 : errno;
  if (error == EOPNOTSUPP) error = ::ftruncate(fd_, bytes) == 0 ? 0 : errno;  // a full device then shows when it is written
  if (error != 0) check(error, ("given " + std::to_string(bytes) + " bytes").c_str());
  room_ = bytes;
}

void ScratchFile::check(int error, const char* what) const {
  if (error == 0) return;
  const char* advice = error == ENOSPC || error == EDQUOT || error == EFBIG ? "; free space there, or set another offload path" : "";
  throw Failure{Errc::StorageUnavailable, where_ + " cannot be " + what + ": " + std::strerror(error) + advice};
}

}  // namespace troupe::detail
