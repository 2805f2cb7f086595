#include <troupe/errors.hpp>
#include <troupe/snapshot_directory.hpp>

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <xxhash.h>

namespace troupe {

namespace fs = std::filesystem;

namespace {

constexpr std::chrono::hours kept_for{1};
constexpr const char* lock_name = ".driver";

[[noreturn]] void fail(const std::string& what, const fs::path& path, int error) {
  throw Failure{Errc::StorageUnavailable, "cannot " + what + " " + path.string() + ": " + std::strerror(error)};
}

// One that only this user can write to: the place is open to all.
void make_private(const fs::path& directory) {
  if (::mkdir(directory.c_str(), 0700) == 0) return;
  if (errno != EEXIST) fail("make", directory, errno);
  struct stat status{};
  if (::lstat(directory.c_str(), &status) != 0) fail("look at", directory, errno);
  if (!S_ISDIR(status.st_mode) || status.st_uid != ::geteuid() || (status.st_mode & 077) != 0) {
    throw Failure{Errc::StorageUnavailable, directory.string() + " is not this user's own private directory; remove it, or set FailureConfig::snapshot_path"};
  }
}

/// -1 when another process has it.
int lock_in(const fs::path& directory) {
  const auto file = directory / lock_name;
  const int fd = ::open(file.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
  if (fd < 0) fail("open", file, errno);
  if (::flock(fd, LOCK_EX | LOCK_NB) == 0) return fd;
  ::close(fd);
  return -1;
}

bool is_old(const fs::path& directory) {
  auto newest = fs::file_time_type::min();
  std::error_code error;
  for (const auto& entry : fs::recursive_directory_iterator{directory, fs::directory_options::skip_permission_denied, error}) {
    newest = std::max(newest, entry.last_write_time(error));
  }
  return newest + kept_for < fs::file_time_type::clock::now();
}

void sweep(const fs::path& all) {
  std::error_code error;
  for (const auto& entry : fs::directory_iterator{all, error}) {
    try {
      if (!entry.is_directory(error) || !is_old(entry.path())) continue;
      const int fd = lock_in(entry.path());
      if (fd < 0) continue;
      fs::remove_all(entry.path(), error);
      ::close(fd);
    } catch (const Failure&) {  // it is gone, or somebody else's business
    }
  }
}

std::string digest_of(const fs::path& run) {
  const auto text = fs::weakly_canonical(run).string();
  char digest[20];
  std::snprintf(digest, sizeof digest, "%016llx", static_cast<unsigned long long>(XXH3_64bits(text.data(), text.size())));
  return digest;
}

}  // namespace

SnapshotDirectory::SnapshotDirectory(const fs::path& snapshot_path, const fs::path& run) {
  const auto all = snapshot_path / ("troupe-" + std::to_string(::geteuid()));
  make_private(all);
  sweep(all);
  path_ = all / digest_of(run);
  make_private(path_);
  lock_fd_ = lock_in(path_);
  if (lock_fd_ < 0) throw Failure{Errc::StorageUnavailable, path_.string() + " is in use by another driver"};
}

SnapshotDirectory::~SnapshotDirectory() {
  if (lock_fd_ >= 0) ::close(lock_fd_);
}

void SnapshotDirectory::remove() noexcept {
  std::error_code error;
  fs::remove_all(path_, error);
}

}  // namespace troupe
