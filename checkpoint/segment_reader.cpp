#include "segment_reader.hpp"

#include "digest.hpp"

#include <io/page_buffer.hpp>

#include <troupe/errors.hpp>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <exception>
#include <mutex>
#include <thread>

namespace troupe::detail {

namespace {

namespace fs = std::filesystem;

constexpr std::size_t kAhead = 4;                    // segments that the disk is asked for before they are read
constexpr std::uint64_t kTwoThreadsFrom = 32 << 20;  // bytes: below that a second thread costs more than it brings

/// One segment, and which of the wanted ranges it touches.
struct Task {
  const Segment* segment = nullptr;
  std::size_t first = 0, last = 0;  ///< of `wanted`
};

std::vector<Task> tasks_of(const FileRecord& record, std::span<const FileRange> wanted) {
  std::vector<Task> tasks;
  std::uint64_t longest = 0;  // how far before a segment a range that reaches into it can begin
  for (const auto& range : wanted) longest = std::max<std::uint64_t>(longest, range.into.size());
  for (const auto& segment : record.segments) {
    const auto end = segment.begin + segment.length;
    const auto from = segment.begin > longest ? segment.begin - longest : 0;
    auto first = std::ranges::lower_bound(wanted, from, {}, &FileRange::begin) - wanted.begin();
    const auto last = std::ranges::lower_bound(wanted, end, {}, &FileRange::begin) - wanted.begin();
    const auto misses = [&](const FileRange& range) { return range.begin + range.into.size() <= segment.begin; };
    while (first < last && misses(wanted[static_cast<std::size_t>(first)])) ++first;
    if (first < last) tasks.push_back({&segment, static_cast<std::size_t>(first), static_cast<std::size_t>(last)});
  }
  return tasks;
}

class Reading {
 public:
  Reading(FileSystem& file_system, const fs::path& path, const FileRecord& record, std::span<const FileRange> wanted,
          const Describe& describe)
      : file_system_(file_system), path_(path), record_(record), wanted_(wanted), describe_(describe), tasks_(tasks_of(record, wanted)) {}

  void run() {
    std::uint64_t bytes = 0;
    for (const auto& task : tasks_) bytes += task.segment->length;
    if (tasks_.empty()) return;
    if (bytes >= kTwoThreadsFrom) {
      std::thread other{[this] { work(); }};
      work();
      other.join();
    } else {
      work();
    }
    if (error_) std::rethrow_exception(error_);
  }

 private:
  void work() {
    try {
      const auto file = file_system_.open(path_, FileSystem::Access::Read);
      PageBuffer scratch;
      for (std::size_t i = next_++; i < tasks_.size() && !failed_; i = next_++) {
        if (i + kAhead < tasks_.size()) file->will_read(tasks_[i + kAhead].segment->begin, tasks_[i + kAhead].segment->length);
        read(*file, tasks_[i], scratch);
      }
    } catch (...) {
      const std::lock_guard lock{mutex_};
      if (!error_) error_ = std::current_exception();
      failed_ = true;
    }
  }

  void read(File& file, const Task& task, PageBuffer& scratch) const {
    const auto& segment = *task.segment;
    if (auto whole = straight(task)) {
      file.read(*whole, segment.begin);
      return check(*whole, segment);
    }
    if (!scratch.data()) scratch = PageBuffer{static_cast<std::size_t>(std::min(record_.size, segment_bytes))};
    const std::span bytes{scratch.data(), segment.length};
    file.read(bytes, segment.begin);
    check(bytes, segment);
    for (auto i = task.first; i < task.last; ++i) {
      const auto& range = wanted_[i];
      const auto begin = std::max(range.begin, segment.begin),
                 end = std::min(range.begin + range.into.size(), segment.begin + segment.length);
      if (begin < end) std::memcpy(range.into.data() + (begin - range.begin), bytes.data() + (begin - segment.begin), end - begin);
    }
  }

  /// Where the whole segment goes when it goes to one place.
  std::optional<std::span<std::byte>> straight(const Task& task) const {
    const auto& range = wanted_[task.first];
    const auto& segment = *task.segment;
    if (task.last - task.first != 1 || range.begin > segment.begin) return std::nullopt;
    const auto lead = segment.begin - range.begin;
    if (range.into.size() < lead + segment.length) return std::nullopt;
    return range.into.subspan(lead, segment.length);
  }

  void check(std::span<const std::byte> bytes, const Segment& segment) const {
    if (digest_of(bytes) != segment.digest) throw Failure{Errc::FileCorrupt, describe_(record_, segment)};
  }

  FileSystem& file_system_;
  const fs::path& path_;
  const FileRecord& record_;
  std::span<const FileRange> wanted_;
  const Describe& describe_;
  std::vector<Task> tasks_;
  std::atomic<std::size_t> next_ = 0;
  std::atomic<bool> failed_ = false;
  std::mutex mutex_;
  std::exception_ptr error_;
};

}  // namespace

void read_segments(FileSystem& file_system, const fs::path& path, const FileRecord& record, std::span<const FileRange> wanted,
                   const Describe& describe) {
  Reading{file_system, path, record, wanted, describe}.run();
}

void verify_segments(FileSystem& file_system, const fs::path& path, const FileRecord& record, const Describe& describe) {
  const auto file = file_system.open(path, FileSystem::Access::Read);
  PageBuffer scratch;
  for (std::size_t i = 0; i < record.segments.size(); ++i) {
    const auto& segment = record.segments[i];
    if (i + kAhead < record.segments.size()) file->will_read(record.segments[i + kAhead].begin, record.segments[i + kAhead].length);
    if (!scratch.data()) scratch = PageBuffer{std::min<std::uint64_t>(record.size, segment_bytes)};
    const std::span bytes{scratch.data(), segment.length};
    file->read(bytes, segment.begin);
    if (digest_of(bytes) != segment.digest) throw Failure{Errc::FileCorrupt, describe(record, segment)};
  }
}

}  // namespace troupe::detail
