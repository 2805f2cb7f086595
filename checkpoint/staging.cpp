#include "files.hpp"

#include <troupe/run_storage.hpp>

#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>

namespace troupe {

namespace {

// A directory in a place where anybody may make one: it must be ours, or another user chose what our checkpoints are.
void make_own_directory(const std::filesystem::path& path) {
  if (::mkdir(path.c_str(), 0700) != 0 && errno != EEXIST) files::fail("make directory", path, errno);
  struct stat facts {};
  if (::lstat(path.c_str(), &facts) != 0) files::fail("look at", path, errno);
  if (S_ISDIR(facts.st_mode) && facts.st_uid == ::getuid()) return;
  throw Failure{Errc::StorageUnavailable, path.string() + " is not a directory of this user; set RunConfig.staging_path"};
}

}  // namespace

std::filesystem::path local_storage_path(const RunConfig& run) {
  if (!run.storage_path.is_url()) return run.storage_path.directory();
  if (!run.staging_path.empty()) return run.staging_path;
  const auto url = parse_store_url(run.storage_path.text());
  const auto own = std::filesystem::temp_directory_path() / ("troupe-" + std::to_string(::getuid()));
  make_own_directory(own);
  return own / url.bucket / url.prefix;
}

}  // namespace troupe
