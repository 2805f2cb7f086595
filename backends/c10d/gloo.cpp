#include <troupe/c10d_adapters.hpp>

#include <torch/csrc/distributed/c10d/FileStore.hpp>
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>

#include <atomic>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

namespace troupe {

namespace {

/// Gloo whose pending collectives can be ended, on this rank and thereby on its peers.
class CancellableGloo final : public c10d::ProcessGroupGloo {
 public:
  using c10d::ProcessGroupGloo::ProcessGroupGloo;
  void close_connections() {
    for (const auto& context : contexts_) context->closeConnections();
  }
};

/// How far every rank has come, in a file that all ranks map: it names who is missing when a deadline passes.
class ProgressFile {
 public:
  ProgressFile(const std::filesystem::path& file, int rank, int size) : rank_(rank), size_(size) {
    const auto bytes = static_cast<std::size_t>(size) * sizeof(Counter);
    const int fd = ::open(file.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd < 0 || ::ftruncate(fd, static_cast<off_t>(bytes)) != 0) {
      if (fd >= 0) ::close(fd);
      throw Failure{Errc::StorageUnavailable, "Gloo's meeting place " + file.string() + " cannot be written: " + std::strerror(errno)};
    }
    void* memory = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    ::close(fd);
    if (memory == MAP_FAILED) throw Failure{Errc::StorageUnavailable, "Gloo's meeting place " + file.string() + " cannot be mapped"};
    counters_ = static_cast<Counter*>(memory);
  }
  ProgressFile(const ProgressFile&) = delete;
  ProgressFile& operator=(const ProgressFile&) = delete;
  ~ProgressFile() { ::munmap(counters_, static_cast<std::size_t>(size_) * sizeof(Counter)); }

  void begin(std::uint64_t sequence) { counters_[rank_].store(sequence, std::memory_order_release); }
  std::string missing(std::uint64_t sequence) const {
    std::string ranks;
    for (int r = 0; r < size_; ++r) {
      if (counters_[r].load(std::memory_order_acquire) < sequence) ranks += (ranks.empty() ? "rank " : ", rank ") + std::to_string(r);
    }
    return ranks;
  }

 private:
  using Counter = std::atomic<std::uint64_t>;
  static_assert(Counter::is_always_lock_free);
  int rank_;
  int size_;
  Counter* counters_ = nullptr;
};

void check_private(const std::filesystem::path& directory) {
  struct stat status {};
  if (::lstat(directory.c_str(), &status) != 0 || !S_ISDIR(status.st_mode)) {
    throw Failure{Errc::StorageUnavailable, "Gloo's meeting place " + directory.string() + " is no directory"};
  }
  if (status.st_uid != ::geteuid() || (status.st_mode & 0077) != 0) {
    throw Failure{Errc::InvalidArgument, "Gloo's meeting place " + directory.string() + " must belong to this user alone (chmod 700)"};
  }
}

}  // namespace

std::unique_ptr<Communicator> make_gloo_communicator(const std::filesystem::path& directory, int rank, int size,
                                                     std::chrono::milliseconds timeout) {
  if (size < 1 || rank < 0 || rank >= size) {
    throw Failure{Errc::InvalidArgument, "rank " + std::to_string(rank) + " does not fit a group of " + std::to_string(size)};
  }
  check_private(directory);
  auto progress = std::make_shared<ProgressFile>(directory / "progress", rank, size);
  try {
    auto store = c10::make_intrusive<c10d::FileStore>((directory / "store").string(), size);
    store->setTimeout(timeout);
    // Gloo's own deadline is longer than ours, so that ours speaks first.
    auto options = c10d::ProcessGroupGloo::Options::create(timeout);
    options->devices.push_back(c10d::ProcessGroupGloo::createDeviceForHostname("127.0.0.1"));
    options->threads = 1;
    auto gloo = c10::make_intrusive<CancellableGloo>(c10::make_intrusive<c10d::PrefixStore>("troupe", store), rank, size, options);
    gloo->setTimeout(timeout + std::chrono::seconds(5));
    return from_c10d(gloo, {.timeout = timeout,
                            .cancel = [gloo] { gloo->close_connections(); },
                            .beginning = [progress](std::uint64_t sequence) { progress->begin(sequence); },
                            .missing = [progress](std::uint64_t sequence) { return progress->missing(sequence); },
                            .name = "gloo"});
  } catch (const Failure&) {
    throw;
  } catch (const std::exception& error) {
    throw Failure{Errc::DeadlinePassed, "Gloo rank " + std::to_string(rank) + " of " + std::to_string(size) +
                                            ": not every rank came to " + directory.string() + ": " + error.what()};
  }
}

}  // namespace troupe
