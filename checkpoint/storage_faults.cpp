#include <troupe/storage_faults.hpp>

#include <troupe/errors.hpp>

#include <atomic>
#include <thread>

namespace troupe {

namespace {

// The process's own, as what they break is: the machine's file system.
std::atomic<std::int64_t> delay_ms{0}, failures{0};

class FaultyFile final : public File {
 public:
  FaultyFile(std::unique_ptr<File> real, std::filesystem::path path) : real_(std::move(real)), path_(std::move(path)) {}

  std::uint64_t size() override { return real_->size(); }
  void read(std::span<std::byte> into, std::uint64_t offset) override { real_->read(into, offset); }
  void will_read(std::uint64_t offset, std::uint64_t bytes) override { real_->will_read(offset, bytes); }
  void set_size(std::uint64_t size) override { real_->set_size(size); }
  void write(std::span<const std::byte> bytes, std::uint64_t offset) override {
    suffer();
    real_->write(bytes, offset);
  }
  void begin_write(int slot, std::span<const std::byte> pages, std::uint64_t offset) override {
    suffer();
    real_->begin_write(slot, pages, offset);
  }
  void wait_write(int slot) override { real_->wait_write(slot); }
  void sync() override {
    delay();
    real_->sync();
  }

 private:
  static void delay() { std::this_thread::sleep_for(std::chrono::milliseconds{delay_ms.load()}); }
  void suffer() const {
    delay();
    for (auto left = failures.load(); left > 0;) {
      if (!failures.compare_exchange_weak(left, left - 1)) continue;
      throw Failure{Errc::StorageUnavailable, path_.string() + ": write: No space left on device (injected: chaos)"};
    }
  }

  std::unique_ptr<File> real_;
  std::filesystem::path path_;
};

class FaultyFileSystem final : public FileSystem {
 public:
  explicit FaultyFileSystem(FileSystem& real) : real_(real) {}

  std::unique_ptr<File> open(const std::filesystem::path& path, Access access) override {
    auto file = real_.open(path, access);
    if (access == Access::Read) return file;
    return std::make_unique<FaultyFile>(std::move(file), path);
  }
  std::optional<Kind> kind(const std::filesystem::path& path) override { return real_.kind(path); }
  std::vector<Entry> list(const std::filesystem::path& directory) override { return real_.list(directory); }
  void make_directory(const std::filesystem::path& path) override { real_.make_directory(path); }
  void rename(const std::filesystem::path& from, const std::filesystem::path& to) override { real_.rename(from, to); }
  bool exchange(const std::filesystem::path& one, const std::filesystem::path& other) override { return real_.exchange(one, other); }
  void remove_file(const std::filesystem::path& path) override { real_.remove_file(path); }
  void remove_directory(const std::filesystem::path& path) override { real_.remove_directory(path); }
  void sync_directory(const std::filesystem::path& path) override { real_.sync_directory(path); }

 private:
  FileSystem& real_;
};

}  // namespace

void slow_storage(std::chrono::milliseconds each) noexcept { delay_ms = each.count(); }
void fail_storage(std::int64_t count) noexcept { failures = count; }

namespace detail {

FileSystem& with_storage_faults(FileSystem& real) {
  if (delay_ms.load(std::memory_order_relaxed) == 0 && failures.load(std::memory_order_relaxed) == 0) return real;
  static FaultyFileSystem faulty{real};
  return faulty;
}

}  // namespace detail

}  // namespace troupe
