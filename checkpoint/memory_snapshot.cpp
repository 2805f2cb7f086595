#include "files.hpp"
#include "snapshot_file.hpp"

#include <troupe/errors.hpp>
#include <troupe/memory_snapshot.hpp>

#include <sys/stat.h>

namespace troupe {

namespace fs = std::filesystem;

namespace {

constexpr int kSlots = 2;

void remove_tree(const fs::path& path) {
  std::error_code error;
  fs::remove_all(path, error);
  files::check(error, "remove", path);
}

void make_private(const fs::path& path) {
  if (::mkdir(path.c_str(), 0700) != 0 && errno != EEXIST) files::fail("make", path, errno);
}

}  // namespace

std::optional<SnapshotInfo> read_snapshot_info(const fs::path& path) {
  try {
    return detail::SnapshotSlot{path}.info();
  } catch (const Failure& failure) {
    if (failure.code() == Errc::FileCorrupt) return std::nullopt;
    throw;
  }
}

bool is_snapshot(const fs::path& path) {
  std::error_code error;
  return fs::is_regular_file(path / detail::snapshot_file_name(0), error);
}

std::optional<SnapshotInfo> find_snapshot(const fs::path& directory) {
  const auto series = detail::snapshot_series(directory);
  for (auto at = series.rbegin(); at != series.rend(); ++at) {
    std::optional<SnapshotInfo> best;
    for (int slot = 0; slot < kSlots; ++slot) {
      auto info = read_snapshot_info(detail::slot_path(directory, *at, slot));
      if (info && (!best || info->number > best->number)) best = std::move(info);
    }
    if (best) return best;
  }
  return std::nullopt;
}

void remove_snapshots(const fs::path& directory) {
  for (const auto series : detail::snapshot_series(directory)) remove_tree(detail::series_path(directory, series));
}

std::uint64_t begin_snapshot_series(const fs::path& directory) {
  const auto kept = find_snapshot(directory);
  const auto before = detail::snapshot_series(directory);
  for (const auto series : before) {
    const auto path = detail::series_path(directory, series);
    if (!kept || kept->path.parent_path() != path) {
      remove_tree(path);
      continue;
    }
    for (int slot = 0; slot < kSlots; ++slot) {
      if (const auto other = detail::slot_path(directory, series, slot); other != kept->path) remove_tree(other);
    }
  }
  std::error_code error;
  fs::create_directories(directory, error);
  files::check(error, "make", directory);
  const auto next = before.empty() ? 1 : before.back() + 1;
  make_private(detail::series_path(directory, next));
  for (int slot = 0; slot < kSlots; ++slot) make_private(detail::slot_path(directory, next, slot));
  return next;
}

void remove_snapshot_series(const fs::path& directory, std::uint64_t series) { remove_tree(detail::series_path(directory, series)); }

void end_older_snapshot_series(const fs::path& directory, std::uint64_t series) {
  for (const auto older : detail::snapshot_series(directory)) {
    if (older < series) remove_tree(detail::series_path(directory, older));
  }
}

}  // namespace troupe
