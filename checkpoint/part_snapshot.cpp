#include "part_plan.hpp"

#include <io/page_buffer.hpp>

#include <sys/mman.h>

#include <algorithm>
#include <list>
#include <mutex>

namespace troupe {

using detail::PageBuffer;
using detail::PartPlan;

namespace {

constexpr std::uint64_t kPage = File::page_bytes;
constexpr std::size_t kHuge = 2 << 20;

std::size_t up(std::size_t bytes, std::size_t unit) { return (bytes + unit - 1) / unit * unit; }

/// Memory that is there when it is first written: page faults are paid here.
PageBuffer present(std::size_t bytes) {
  PageBuffer buffer{up(std::max<std::size_t>(bytes, 1), kHuge)};
  (void)::madvise(buffer.data(), buffer.bytes(), MADV_HUGEPAGE);
  for (std::size_t at = 0; at < buffer.bytes(); at += kPage) buffer.data()[at] = std::byte{0};
  return buffer;
}

}  // namespace

struct SnapshotPool::Impl {
  mutable std::mutex mutex;
  std::list<PageBuffer> free;
  std::size_t bytes = 0;

  /// The smallest free one that is large enough. One that is too small makes room for it.
  PageBuffer take(std::size_t wanted) {
    std::unique_lock lock{mutex};
    auto best = free.end();
    for (auto at = free.begin(); at != free.end(); ++at) {
      if (at->bytes() >= wanted && (best == free.end() || at->bytes() < best->bytes())) best = at;
    }
    if (best != free.end()) {
      auto taken = std::move(*best);
      free.erase(best);
      return taken;
    }
    if (!free.empty()) {
      bytes -= free.back().bytes();
      free.pop_back();
    }
    lock.unlock();
    auto fresh = present(wanted);
    lock.lock();
    bytes += fresh.bytes();
    return fresh;
  }
  void give_back(PageBuffer buffer) {
    const std::lock_guard lock{mutex};
    free.push_back(std::move(buffer));
  }
};

SnapshotPool::SnapshotPool() : impl_(std::make_unique<Impl>()) {}
SnapshotPool::~SnapshotPool() = default;

void SnapshotPool::reserve(std::size_t bytes) { impl_->give_back(impl_->take(bytes)); }

std::size_t SnapshotPool::bytes() const {
  const std::lock_guard lock{impl_->mutex};
  return impl_->bytes;
}

struct PartSnapshot::Impl {
  PartPlan plan;
  SnapshotPool::Impl* pool = nullptr;
  PageBuffer memory;

  Impl(const CheckpointPart& part, SnapshotPool::Impl& from) : plan(detail::plan_part(part)), pool(&from) {
    std::size_t bytes = 0;
    for (const auto& file : plan.files) {
      for (const auto& run : detail::runs_of(file.pieces)) bytes += place(run).second;
    }
    memory = pool->take(bytes);
    auto* at = memory.data();
    for (auto& file : plan.files) {
      std::vector<PartPlan::Piece> copies;
      for (const auto& run : detail::runs_of(file.pieces)) {
        copies.push_back(copy(run, at, file.segments));
        at += place(run).second;
      }
      file.pieces = std::move(copies);
    }
  }
  ~Impl() { pool->give_back(std::move(memory)); }
  Impl(const Impl&) = delete;

  /// Where in whole pages of memory a run begins, and how many bytes those have: as in the file, so that pages go straight to the disk.
  static std::pair<std::size_t, std::size_t> place(const detail::Run& run) {
    const auto lead = static_cast<std::size_t>(run.begin() % kPage);
    return {lead, up(lead + static_cast<std::size_t>(run.end() - run.begin()), kPage)};
  }
  /// Digested on the way: while a copy waits for memory that is free, and so beside training less is left to do.
  static PartPlan::Piece copy(const detail::Run& run, std::byte* pages, std::vector<Segment>& segments) {
    const std::span all{pages + place(run).first, static_cast<std::size_t>(run.end() - run.begin())};
    const auto* piece = run.pieces.data();
    for (auto begin = run.begin(); begin < run.end();) {
      const auto end = detail::segment_end(run, begin);
      DigestStream digest;
      detail::copy_and_digest(all.subspan(begin - run.begin(), end - begin), begin, piece, digest);
      segments.push_back({begin, static_cast<std::uint32_t>(end - begin), digest.value()});
      begin = end;
    }
    return {run.begin(), all};
  }
};

PartSnapshot::PartSnapshot(const CheckpointPart& part, SnapshotPool& pool) : impl_(std::make_unique<Impl>(part, *pool.impl_)) {}
PartSnapshot::~PartSnapshot() = default;
PartSnapshot::PartSnapshot(PartSnapshot&&) noexcept = default;
PartSnapshot& PartSnapshot::operator=(PartSnapshot&&) noexcept = default;

void PartSnapshot::write(const std::filesystem::path& directory, FileSystem& file_system) {
  detail::write_plan(directory, impl_->plan, file_system);
}

std::size_t PartSnapshot::bytes() const noexcept { return static_cast<std::size_t>(impl_->plan.tensor_bytes); }

}  // namespace troupe
