#include "listing.hpp"

#include <arrow/filesystem/filesystem.h>
#include <fnmatch.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <set>
#include <span>
#include <utility>

#include "../columns/arrow_errors.hpp"

namespace troupe::detail {

namespace {

bool hidden(const std::string& name) { return name.starts_with('.') || name.starts_with('_'); }

std::vector<std::string> parts_of(const std::string& path) {
  std::vector<std::string> parts;
  for (std::size_t begin = 0; begin <= path.size();) {
    const auto end = std::min(path.find('/', begin), path.size());
    if (end > begin) parts.push_back(path.substr(begin, end - begin));
    begin = end + 1;
  }
  return parts;
}

/// `seen`: directories by device and inode, so that a link to a directory above ends.
void list_local(const std::string& directory, const std::string& below, int depth, std::set<std::pair<dev_t, ino_t>>& seen, std::vector<Listed>& found) {
  struct stat facts {};
  if (::stat(directory.c_str(), &facts) != 0 || !seen.insert({facts.st_dev, facts.st_ino}).second) return;
  std::error_code error;
  std::vector<std::string> names;
  for (std::filesystem::directory_iterator entry{directory, error}, end; !error && entry != end; entry.increment(error)) {
    names.push_back(entry->path().filename().string());
  }
  if (error) throw Failure{error == std::errc::no_such_file_or_directory ? Errc::FileNotFound : Errc::StorageUnavailable, "cannot list " + directory + ": " + error.message()};
  std::sort(names.begin(), names.end());
  for (const auto& name : names) {
    if (hidden(name)) continue;
    const auto path = directory + (directory.ends_with('/') ? "" : "/") + name;
    if (::stat(path.c_str(), &facts) != 0) continue;  // gone, or a link to nowhere
    if (S_ISDIR(facts.st_mode)) {
      if (depth != 1) list_local(path, below + name + "/", depth - 1, seen, found);
    } else if (S_ISREG(facts.st_mode)) {
      found.push_back({path, below + name, facts.st_size});
    }
  }
}

void list_remote(arrow::fs::FileSystem& system, const std::string& directory, int depth, std::vector<Listed>& found) {
  arrow::fs::FileSelector below;
  below.base_dir = directory;
  below.recursive = depth != 1;
  if (depth > 0) below.max_recursion = depth - 1;
  for (const auto& info : value(system.GetFileInfo(below), "cannot list " + directory, Errc::StorageUnavailable)) {
    if (info.type() != arrow::fs::FileType::File) continue;
    const auto relative = info.path().substr(std::min(info.path().size(), directory.size() + (directory.empty() || directory.ends_with('/') ? 0 : 1)));
    const auto parts = parts_of(relative);
    if (std::any_of(parts.begin(), parts.end(), hidden)) continue;
    found.push_back({info.path(), relative, info.size()});
  }
}

bool match_parts(std::span<const std::string> pattern, std::span<const std::string> path) {
  if (pattern.empty()) return path.empty();
  if (pattern.front() == "**") {
    for (std::size_t skipped = 0; skipped <= path.size(); ++skipped) {
      if (match_parts(pattern.subspan(1), path.subspan(skipped))) return true;
    }
    return false;
  }
  return !path.empty() && ::fnmatch(pattern.front().c_str(), path.front().c_str(), 0) == 0 && match_parts(pattern.subspan(1), path.subspan(1));
}

}  // namespace

std::vector<Listed> list_files(arrow::fs::FileSystem* system, const std::string& directory, int depth) {
  std::vector<Listed> found;
  if (system) {
    list_remote(*system, directory, depth, found);
  } else {
    std::set<std::pair<dev_t, ino_t>> seen;
    list_local(directory, "", depth, seen, found);
  }
  std::sort(found.begin(), found.end(), [](const Listed& a, const Listed& b) { return a.relative < b.relative; });
  return found;
}

bool matches(const std::string& pattern, const std::string& relative) {
  auto parts = parts_of(pattern);
  // "**/**" is "**"; without this a pattern of many of them takes exponential time.
  parts.erase(std::unique(parts.begin(), parts.end(), [](const auto& a, const auto& b) { return a == "**" && b == "**"; }), parts.end());
  return match_parts(parts, parts_of(relative));
}

bool is_glob(const std::string& path) { return path.find_first_of("*?[") != std::string::npos; }

Glob split_glob(const std::string& path) {
  const auto wild = path.find_first_of("*?[");
  const auto slash = path.rfind('/', wild);
  if (slash == std::string::npos) return {".", path};
  return {slash == 0 ? "/" : path.substr(0, slash), path.substr(slash + 1)};
}

}  // namespace troupe::detail
