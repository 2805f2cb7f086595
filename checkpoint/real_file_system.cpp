#include "real_file_system.hpp"

#include "files.hpp"

#include <io/async_io.hpp>

#include <troupe/errors.hpp>
#include <troupe/storage_faults.hpp>

#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <exception>
#include <thread>
#include <utility>

namespace troupe {

namespace {

namespace fs = std::filesystem;

constexpr std::size_t kMost = std::size_t{1} << 30;  // of one call

[[noreturn]] void fail(const char* what, const fs::path& path, int error) {
  if (error == ENOENT || error == ENOTDIR) throw Failure{Errc::FileNotFound, path.string() + ": there is no such file or directory"};
  if (error == ELOOP) throw Failure{Errc::StorageUnavailable, path.string() + ": is a symbolic link, which is not followed here"};
  files::fail(what, path, error);
}

class RealFile final : public File {
 public:
  RealFile(fs::path path, FileSystem::Access access, detail::RealFileSystemOptions options) : path_(std::move(path)), options_(options) {
    const int flags = access == FileSystem::Access::Read ? O_RDONLY | O_NONBLOCK : O_RDWR | O_CREAT;
    fd_ = ::open(path_.c_str(), flags | O_CLOEXEC | O_NOFOLLOW, 0644);
    if (fd_ < 0) fail(access == FileSystem::Access::Read ? "open" : "make", path_, errno);
    struct stat info {};
    const bool regular = ::fstat(fd_, &info) == 0 && S_ISREG(info.st_mode);
    if (regular) return;
    ::close(fd_);
    throw Failure{Errc::StorageUnavailable, path_.string() + ": is no regular file"};
  }
  ~RealFile() override {
    io_.reset();  // waits for what is under way
    if (direct_fd_ >= 0 && direct_fd_ != fd_) ::close(direct_fd_);
    ::close(fd_);
  }

  std::uint64_t size() override {
    struct stat info {};
    if (::fstat(fd_, &info) != 0) fail("look at", path_, errno);
    return static_cast<std::uint64_t>(info.st_size);
  }

  void read(std::span<std::byte> into, std::uint64_t offset) override {
    while (!into.empty()) {
      const auto got = ::pread(fd_, into.data(), std::min(into.size(), kMost), static_cast<off_t>(offset));
      if (got < 0 && errno == EINTR) continue;
      if (got < 0) fail("read", path_, errno);
      if (got == 0)
        throw Failure{Errc::FileCorrupt, path_.string() + ": ends at byte " + std::to_string(offset) + ", " + std::to_string(into.size()) +
                                             " bytes too early"};
      into = into.subspan(static_cast<std::size_t>(got));
      offset += static_cast<std::uint64_t>(got);
    }
  }

  void will_read(std::uint64_t offset, std::uint64_t bytes) override {
    (void)::posix_fadvise(fd_, static_cast<off_t>(offset), static_cast<off_t>(bytes), POSIX_FADV_WILLNEED);
  }

  void set_size(std::uint64_t size) override {
    // Several ranks do this to one file at once: all to the same size.
    if (this->size() != size && ::ftruncate(fd_, static_cast<off_t>(size)) != 0) fail("set the size of", path_, errno);
    if (size == 0 || ::fallocate(fd_, 0, 0, static_cast<off_t>(size)) == 0 || errno == EOPNOTSUPP) return;
    fail(("take " + std::to_string(size) + " bytes for").c_str(), path_, errno);
  }

  void write(std::span<const std::byte> bytes, std::uint64_t offset) override {
    while (!bytes.empty()) {
      const auto written = ::pwrite(fd_, bytes.data(), std::min(bytes.size(), kMost), static_cast<off_t>(offset));
      if (written < 0 && errno == EINTR) continue;
      if (written <= 0) fail("write", path_, written < 0 ? errno : EIO);
      bytes = bytes.subspan(static_cast<std::size_t>(written));
      offset += static_cast<std::uint64_t>(written);
    }
  }

  void begin_write(int slot, std::span<const std::byte> pages, std::uint64_t offset) override {
    if (!io_) open_direct();
    under_way_[static_cast<std::size_t>(slot)] = {pages, offset};
    // AsyncIo takes memory for both directions; writing leaves it as it is.
    io_->begin(slot, detail::AsyncIo::Kind::Write, const_cast<std::byte*>(pages.data()), pages.size(), static_cast<std::int64_t>(offset));
  }

  void wait_write(int slot) override {
    if (!io_) return;
    auto& operation = under_way_[static_cast<std::size_t>(slot)];
    const auto [pages, offset] = std::exchange(operation, {});
    const int error = io_->wait(slot);
    if (error == EINVAL && direct_fd_ != fd_) return write(pages, offset);  // opened past the cache, but not written
    if (error != 0) fail("write", path_, error);
  }

  void sync() override {
    if (::fsync(fd_) != 0) fail("fsync", path_, errno);
  }

 private:
  struct Operation {
    std::span<const std::byte> pages;
    std::uint64_t offset = 0;
  };

  void open_direct() {
    if (options_.direct) direct_fd_ = ::open(path_.c_str(), O_WRONLY | O_DIRECT | O_CLOEXEC | O_NOFOLLOW);
    if (direct_fd_ < 0) direct_fd_ = fd_;
    if (options_.uring) io_ = detail::make_uring_io(direct_fd_, num_slots);
    if (!io_) io_ = detail::make_thread_io(direct_fd_, num_slots);
  }

  fs::path path_;
  detail::RealFileSystemOptions options_;
  int fd_ = -1;
  int direct_fd_ = -1;
  std::unique_ptr<detail::AsyncIo> io_;
  std::array<Operation, num_slots> under_way_{};
};

class RealFileSystem final : public FileSystem {
 public:
  explicit RealFileSystem(detail::RealFileSystemOptions options) : options_(options) {}

  std::unique_ptr<File> open(const fs::path& path, Access access) override { return std::make_unique<RealFile>(path, access, options_); }

  std::optional<Kind> kind(const fs::path& path) override {
    struct stat info {};
    if (::lstat(path.c_str(), &info) != 0) {
      if (errno == ENOENT || errno == ENOTDIR) return std::nullopt;
      fail("look at", path, errno);
    }
    return S_ISREG(info.st_mode) ? Kind::File : S_ISDIR(info.st_mode) ? Kind::Directory : Kind::Other;
  }

  std::vector<Entry> list(const fs::path& directory) override {
    std::error_code error;
    std::vector<Entry> entries;
    fs::directory_iterator at{directory, error};
    for (; !error && at != fs::directory_iterator{}; at.increment(error)) {
      if (const auto found = kind(at->path())) entries.push_back({at->path().filename().string(), *found});
    }
    if (error) fail("list", directory, error.value());
    std::ranges::sort(entries, {}, &Entry::name);
    return entries;
  }

  void make_directory(const fs::path& path) override {
    if (::mkdir(path.c_str(), 0755) == 0) return;
    const int error = errno;
    if (error != EEXIST || kind(path) != Kind::Directory) fail("make directory", path, error);
  }

  void rename(const fs::path& from, const fs::path& to) override {
    if (::rename(from.c_str(), to.c_str()) != 0) fail(("rename to " + to.string()).c_str(), from, errno);
  }
  bool exchange(const fs::path& one, const fs::path& other) override {
    if (!options_.exchange) return false;
    if (::renameat2(AT_FDCWD, one.c_str(), AT_FDCWD, other.c_str(), RENAME_EXCHANGE) == 0) return true;
    if (errno == EINVAL || errno == ENOSYS || errno == EOPNOTSUPP) return false;
    fail(("exchange with " + other.string()).c_str(), one, errno);
  }
  void remove_file(const fs::path& path) override {
    if (::unlink(path.c_str()) != 0) fail("remove", path, errno);
  }
  void remove_directory(const fs::path& path) override {
    if (::rmdir(path.c_str()) != 0) fail("remove", path, errno);
  }
  void sync_directory(const fs::path& path) override { files::sync(path); }

  void sync_all(std::span<const std::unique_ptr<File>> files, std::span<const fs::path> directories) override {
    constexpr std::size_t most_threads = 8;
    const auto count = files.size() + directories.size();
    std::atomic<std::size_t> next = 0;
    std::vector<std::exception_ptr> errors(count);
    const auto work = [&] {
      for (auto i = next++; i < count; i = next++) {
        try {
          if (i < files.size()) files[i]->sync();
          else sync_directory(directories[i - files.size()]);
        } catch (...) {
          errors[i] = std::current_exception();
        }
      }
    };
    {
      std::vector<std::jthread> threads;
      for (std::size_t i = 1; i < std::min(count, most_threads); ++i) threads.emplace_back(work);
      work();
    }
    for (const auto& error : errors) {
      if (error) std::rethrow_exception(error);
    }
  }

 private:
  detail::RealFileSystemOptions options_;
};

}  // namespace

std::unique_ptr<FileSystem> detail::make_real_file_system(RealFileSystemOptions options) { return std::make_unique<RealFileSystem>(options); }

FileSystem& real_file_system() {
  static RealFileSystem real{{}};
  return detail::with_storage_faults(real);
}

}  // namespace troupe
