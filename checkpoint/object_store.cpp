#include "files.hpp"

#include <troupe/object_store.hpp>

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <exception>
#include <mutex>
#include <thread>

namespace troupe {

namespace {

Errc code_of(StoreError error) {
  switch (error) {
    case StoreError::NoBucket:
    case StoreError::NotFound:
      return Errc::NotFound;
    case StoreError::Refused:
      return Errc::Unsupported;
    case StoreError::Cancelled:
      return Errc::Cancelled;
    default:
      return Errc::StorageUnavailable;
  }
}

constexpr std::uint64_t range_bytes = std::uint64_t{8} << 20;

// An open file that is closed whatever happens.
class OpenFile {
 public:
  explicit OpenFile(const std::filesystem::path& path) : path_(path), fd_(::open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644)) {
    if (fd_ < 0) files::fail("write", path, errno);
  }
  ~OpenFile() { ::close(fd_); }
  OpenFile(const OpenFile&) = delete;
  OpenFile& operator=(const OpenFile&) = delete;
  void write_at(std::uint64_t begin, std::span<const std::byte> bytes) {
    while (!bytes.empty()) {
      const auto done = ::pwrite(fd_, bytes.data(), bytes.size(), static_cast<off_t>(begin));
      if (done < 0 && errno == EINTR) continue;
      if (done < 0) files::fail("write", path_, errno);
      begin += static_cast<std::uint64_t>(done);
      bytes = bytes.subspan(static_cast<std::size_t>(done));
    }
  }
  void sync() {
    if (::fsync(fd_) != 0) files::fail("fsync", path_, errno);
  }

 private:
  std::filesystem::path path_;
  int fd_;
};

}  // namespace

bool worth_retrying(StoreError error) noexcept { return error <= StoreError::Truncated; }

std::string_view name(StoreError error) noexcept {
  constexpr std::string_view names[] = {"throttled", "server error", "timeout", "connection lost", "truncated", "past the end",
                                        "access denied", "no such bucket", "not found", "refused", "local file", "cancelled"};
  return names[static_cast<std::size_t>(error)];
}

StoreFailure::StoreFailure(StoreError error, const std::string& text) : Failure(code_of(error), text), error_(error) {}

void download(ObjectStore& store, const std::string& key, std::uint64_t bytes, const std::filesystem::path& file, int num_threads) {
  OpenFile out{file};
  std::atomic<std::uint64_t> next{0};
  std::atomic<bool> failed{false};
  std::exception_ptr first;
  std::mutex mutex;
  const auto work = [&] {
    try {
      std::vector<std::byte> buffer(std::min(bytes, range_bytes));
      while (!failed) {
        const auto begin = next.fetch_add(range_bytes);
        if (begin >= bytes) return;
        const std::span into{buffer.data(), static_cast<std::size_t>(std::min(range_bytes, bytes - begin))};
        store.get(key, begin, into);
        out.write_at(begin, into);
      }
    } catch (...) {
      const std::lock_guard lock{mutex};
      if (!failed.exchange(true)) first = std::current_exception();
    }
  };
  const auto ranges = (bytes + range_bytes - 1) / range_bytes;
  {
    std::vector<std::jthread> threads;
    for (std::uint64_t i = 1; i < std::min<std::uint64_t>(ranges, static_cast<std::uint64_t>(num_threads)); ++i) threads.emplace_back(work);
    work();
  }
  if (first) std::rethrow_exception(first);
  out.sync();
}

}  // namespace troupe
