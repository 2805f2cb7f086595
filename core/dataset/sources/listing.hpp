#pragma once

#include <arrow/filesystem/type_fwd.h>

#include <cstdint>
#include <string>
#include <vector>

namespace troupe::detail {

struct Listed {
  std::string path;      ///< of the file system
  std::string relative;  ///< to the directory that was listed
  std::int64_t size = 0;
};

/// Files below a directory, to `depth` levels (1: in it; -1: all), sorted by relative path. Links to directories are followed, each directory once.
/// Names that begin with '.' or '_' are left out, and what is in such directories. `system` nullptr: this machine's.
[[nodiscard]] std::vector<Listed> list_files(arrow::fs::FileSystem* system, const std::string& directory, int depth);

/// Whether `relative` ("a/b/c.csv") is what `pattern` ("a/*/[a-c]*.csv", "**/c.csv") describes. "**" is any number of directories.
[[nodiscard]] bool matches(const std::string& pattern, const std::string& relative);
[[nodiscard]] bool is_glob(const std::string& path);
/// The directory before the first part with a wildcard ("data" of "data/*.csv"; "." where there is none), and the rest.
struct Glob {
  std::string directory;
  std::string pattern;
};
[[nodiscard]] Glob split_glob(const std::string& path);

}  // namespace troupe::detail
