// The S3 plug-in: an ObjectStore over Apache Arrow's S3 file system.
#include "s3_start.hpp"

#include <arrow/buffer.h>
#include <arrow/filesystem/s3fs.h>
#include <arrow/io/interfaces.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>

namespace troupe {

namespace {

/// A file's bytes as memory: pages come from the page cache and can always be dropped, whatever the number of parts in flight.
class MappedFile {
 public:
  explicit MappedFile(const std::filesystem::path& path) {
    const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
    struct stat facts {};
    if (fd < 0 || ::fstat(fd, &facts) != 0) fail(path, fd);
    size_ = static_cast<std::size_t>(facts.st_size);
    if (size_ > 0) data_ = ::mmap(nullptr, size_, PROT_READ, MAP_SHARED, fd, 0);
    if (data_ == MAP_FAILED) fail(path, fd);
    ::close(fd);
    if (size_ > 0) ::madvise(data_, size_, MADV_SEQUENTIAL);
  }
  ~MappedFile() {
    if (size_ > 0) ::munmap(data_, size_);
  }
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;
  std::size_t size() const { return size_; }
  const std::uint8_t* data() const { return static_cast<const std::uint8_t*>(data_); }
  /// These pages are not read again: they no longer count as this process's memory.
  void done_with(std::size_t begin, std::size_t size) const {
    const auto page = static_cast<std::size_t>(::sysconf(_SC_PAGESIZE));
    const auto first = begin / page * page;
    ::madvise(static_cast<std::uint8_t*>(data_) + first, size, MADV_DONTNEED);
  }

 private:
  [[noreturn]] static void fail(const std::filesystem::path& path, int fd) {
    const int why = errno;
    if (fd >= 0) ::close(fd);
    throw StoreFailure{StoreError::Local, "cannot read " + path.string() + ": " + std::strerror(why)};
  }
  void* data_ = nullptr;
  std::size_t size_ = 0;
};

class S3Store final : public ObjectStore {
 public:
  S3Store(const StoreUrl& url, const S3Settings& settings) : bucket_(url.bucket), settings_(settings) {
    auto made = arrow::fs::S3FileSystem::Make(options_for(url, settings));
    must(made.status(), "open", "");
    files_ = *made;
  }
  ~S3Store() override { shut_down_at_exit(); }

  std::string url() const override { return "s3://" + bucket_; }

  void check() override {
    const auto info = files_->GetFileInfo(bucket_);
    must(info.status(), "look at", "");
    if (info->type() == arrow::fs::FileType::NotFound) {
      throw StoreFailure{StoreError::NoBucket, url() + " does not exist: " + s3_advice(StoreError::NoBucket, "")};
    }
  }

  void put(const std::string& key, const std::filesystem::path& file) override {
    const MappedFile bytes{file};
    refuse_when_cancelled("put", key);
    auto opened = files_->OpenOutputStream(path(key), nullptr);
    must(opened.status(), "put", key);
    auto& out = **opened;
    try {
      // Amazon takes 10,000 parts at most.
      const auto part = std::max<std::size_t>(settings_.part_bytes, bytes.size() / 9'000 + 1);
      const auto burst = part * static_cast<std::size_t>(settings_.num_connections) * 2;
      for (std::size_t begin = 0; begin < bytes.size(); begin += part) {
        // Waiting now and then bounds what is queued (the library copies it), and lets a failure or `cancel` show soon.
        if (begin > 0 && begin % burst == 0) {
          must(out.Flush(), "put", key);
          bytes.done_with(begin - burst, burst);
        }
        refuse_when_cancelled("put", key);
        const auto size = static_cast<std::int64_t>(std::min(part, bytes.size() - begin));
        must(out.Write(std::make_shared<arrow::Buffer>(bytes.data() + begin, size)), "put", key);
      }
      must(out.Close(), "put", key);
    } catch (...) {
      (void)out.Abort();  // so that the store forgets the parts; they would be paid for
      throw;
    }
  }

  void get(const std::string& key, std::uint64_t begin, std::span<std::byte> into) override {
    refuse_when_cancelled("get", key);
    if (into.empty()) return;
    // Asks for the size first: told a size, Arrow trusts it and calls bytes read that never came.
    auto opened = files_->OpenInputFile(path(key));
    must(opened.status(), "get", key);
    const auto read = (*opened)->ReadAt(static_cast<std::int64_t>(begin), static_cast<std::int64_t>(into.size()), into.data());
    must(read.status(), "get", key);
    if (static_cast<std::size_t>(*read) == into.size()) return;
    throw StoreFailure{StoreError::PastEnd, url() + "/" + key + " ends before byte " + std::to_string(begin + into.size())};
  }

  std::optional<ObjectInfo> head(const std::string& key) override {
    refuse_when_cancelled("look at", key);
    const auto info = files_->GetFileInfo(path(key));
    must(info.status(), "look at", key);
    if (info->type() == arrow::fs::FileType::NotFound) check();  // an absent bucket looks the same
    if (info->type() != arrow::fs::FileType::File) return std::nullopt;
    return ObjectInfo{key, static_cast<std::uint64_t>(info->size())};
  }

  std::vector<ObjectInfo> list(const std::string& prefix) override {
    refuse_when_cancelled("list", prefix);
    arrow::fs::FileSelector below;
    below.base_dir = prefix.empty() ? bucket_ : path(prefix);
    below.recursive = true;
    below.allow_not_found = true;
    const auto infos = files_->GetFileInfo(below);
    must(infos.status(), "list", prefix);
    if (infos->empty()) check();
    std::vector<ObjectInfo> found;
    for (const auto& info : *infos) {
      if (info.type() != arrow::fs::FileType::File) continue;
      found.push_back({info.path().substr(bucket_.size() + 1), static_cast<std::uint64_t>(info.size())});
    }
    std::sort(found.begin(), found.end(), [](const auto& a, const auto& b) { return a.key < b.key; });
    return found;
  }

  void remove(const std::string& key) override {
    refuse_when_cancelled("remove", key);
    if (!head(key)) return;
    const auto status = files_->DeleteFile(path(key));
    // Arrow goes on to make an empty object for the "folder", which some stores refuse: that is no concern of ours.
    if (!status.ok() && head(key)) must(status, "remove", key);
  }

  void cancel() noexcept override { cancelled_ = true; }

 private:
  std::string path(const std::string& key) const { return bucket_ + "/" + key; }

  void must(const arrow::Status& status, const char* verb, const std::string& key) const {
    if (status.ok()) return;
    const auto text = status.message();
    const auto error = classify_s3_error(text);
    const auto advice = s3_advice(error, text);
    throw StoreFailure{error, "cannot " + std::string(verb) + " " + url() + (key.empty() ? "" : "/" + key) + ": " + text +
                                  (advice.empty() ? "" : " (" + advice + ")")};
  }
  void refuse_when_cancelled(const char* verb, const std::string& key) const {
    if (cancelled_) throw StoreFailure{StoreError::Cancelled, "cannot " + std::string(verb) + " " + url() + "/" + key + ": cancelled"};
  }

  std::string bucket_;
  S3Settings settings_;
  std::shared_ptr<arrow::fs::S3FileSystem> files_;
  std::atomic<bool> cancelled_{false};
};

}  // namespace

}  // namespace troupe

extern "C" __attribute__((visibility("default"))) troupe::ObjectStore* troupe_s3_open(int abi, const troupe::StoreUrl& url,
                                                                                       const troupe::S3Settings& settings) {
  if (abi != troupe::kS3PluginAbi) return nullptr;
  troupe::start_s3_once(settings);
  auto store = std::make_unique<troupe::S3Store>(url, settings);
  troupe::shut_down_at_exit();
  return store.release();
}
