#include "files.hpp"

#include <troupe/errors.hpp>

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <fstream>
#include <sstream>

namespace troupe::files {

void fail(const std::string& what, const std::filesystem::path& path, int error) {
  throw Failure{Errc::StorageUnavailable, "cannot " + what + " " + path.string() + ": " + std::strerror(error)};
}

void check(const std::error_code& error, const std::string& what, const std::filesystem::path& path) {
  if (error) fail(what, path, error.value());
}

void make_directories(const std::filesystem::path& path) {
  std::error_code error;
  std::filesystem::create_directories(path, error);
  check(error, "make directory", path);
}

void sync(const std::filesystem::path& path) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) fail("open", path, errno);
  const int failed = ::fsync(fd) != 0 ? errno : 0;
  ::close(fd);
  if (failed) fail("fsync", path, failed);
}

void write_all(int fd, std::string_view bytes, const std::filesystem::path& path) {
  while (!bytes.empty()) {
    const auto written = ::write(fd, bytes.data(), bytes.size());
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) fail("write", path, errno);
    bytes.remove_prefix(static_cast<std::size_t>(written));
  }
}

void write_atomically(const std::filesystem::path& path, std::string_view bytes) {
  auto temporary = path;
  temporary += ".tmp";
  const int fd = ::open(temporary.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  if (fd < 0) fail("write", temporary, errno);
  try {
    write_all(fd, bytes, temporary);
    if (::fsync(fd) != 0) fail("fsync", temporary, errno);
  } catch (...) {
    ::close(fd);
    ::unlink(temporary.c_str());
    throw;
  }
  ::close(fd);
  files::rename(temporary, path);
  sync(path.parent_path());
}

std::string read_all(const std::filesystem::path& path) {
  std::ifstream in{path, std::ios::binary};
  if (!in) fail("read", path, errno);
  std::ostringstream bytes;
  bytes << in.rdbuf();
  return std::move(bytes).str();
}

void rename(const std::filesystem::path& from, const std::filesystem::path& to) {
  std::error_code error;
  std::filesystem::rename(from, to, error);
  check(error, "rename " + from.string() + " to", to);
}

}  // namespace troupe::files
