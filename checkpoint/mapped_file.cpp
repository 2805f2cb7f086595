#include "mapped_file.hpp"

#include "descriptor.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include <cerrno>
#include <cstring>
#include <string>
#include <troupe/errors.hpp>

namespace troupe::detail {

MappedFile map_private(const std::filesystem::path& file) {
  const auto fail = [&](const char* doing) {
    throw Failure{Errc::StorageUnavailable,
                  file.string() + ": cannot " + doing + ": " + std::strerror(errno)};
  };
  const Descriptor fd{::open(file.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK)};
  if (fd.value < 0) {
    if (errno == ENOENT || errno == ENOTDIR)
      throw Failure{Errc::FileNotFound, file.string() + ": no such file"};
    fail("open");
  }
  struct stat info {};
  if (::fstat(fd.value, &info) != 0) fail("stat");
  if (!S_ISREG(info.st_mode))
    throw Failure{Errc::FileCorrupt, file.string() + ": is no regular file"};
  const auto size = static_cast<std::size_t>(info.st_size);
  if (size == 0) return {};
  void* const at =
      ::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_NORESERVE, fd.value, 0);
  if (at == MAP_FAILED) fail("map");
  return {{at, [size](void* p) { ::munmap(p, size); }}, {static_cast<std::byte*>(at), size}};
}

}  // namespace troupe::detail
