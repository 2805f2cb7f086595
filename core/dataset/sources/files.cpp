#include "files.hpp"

#include <arrow/filesystem/filesystem.h>
#include <arrow/io/file.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <troupe/plugin.hpp>
#include <troupe/storage_path.hpp>

#include <dlfcn.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>

#include "../columns/arrow_errors.hpp"
#include "listing.hpp"

namespace troupe::detail {

namespace {

struct Found {
  std::vector<Listed> files;
  std::size_t other = 0;       ///< of other extensions
  std::string first_other;
  bool below_directory = false;
};

/// A path that is there, or nothing.
std::optional<arrow::fs::FileInfo> look_at(arrow::fs::FileSystem* system, const std::string& path) {
  if (system) {
    const auto info = value(system->GetFileInfo(path), "cannot look at " + path, Errc::StorageUnavailable);
    if (info.type() == arrow::fs::FileType::NotFound) return std::nullopt;
    return info;
  }
  struct stat facts {};
  if (::stat(path.c_str(), &facts) != 0) {
    if (errno == ENOENT || errno == ENOTDIR) return std::nullopt;
    throw Failure{Errc::StorageUnavailable, "cannot look at " + path + ": " + std::strerror(errno)};
  }
  arrow::fs::FileInfo info{path, S_ISDIR(facts.st_mode) ? arrow::fs::FileType::Directory : arrow::fs::FileType::File};
  info.set_size(facts.st_size);
  return info;
}

Found find_in(arrow::fs::FileSystem* system, const std::string& path, const std::vector<std::string>& extensions) {
  Found found;
  const auto there = look_at(system, path);
  if (there && there->type() == arrow::fs::FileType::File) {
    found.files.push_back({path, path.substr(path.rfind('/') + 1), there->size()});
  } else if (there) {
    found.below_directory = true;
    for (auto& file : list_files(system, path, -1)) {
      const bool wanted = std::any_of(extensions.begin(), extensions.end(), [&](const auto& end) { return file.relative.ends_with(end); });
      if (wanted) {
        found.files.push_back(std::move(file));
      } else if (found.other++ == 0) {
        found.first_other = file.relative;
      }
    }
  } else if (is_glob(path)) {
    const auto glob = split_glob(path);
    if (!look_at(system, glob.directory)) return found;
    const bool deep = glob.pattern.find("**") != std::string::npos;
    const int depth = deep ? -1 : static_cast<int>(std::count(glob.pattern.begin(), glob.pattern.end(), '/')) + 1;
    for (auto& file : list_files(system, glob.directory, depth)) {
      if (matches(glob.pattern, file.relative)) found.files.push_back(std::move(file));
    }
  }
  return found;
}

std::string join(const std::vector<std::string>& words) {
  std::string all;
  for (const auto& word : words) all += (all.empty() ? "" : ", ") + word;
  return all;
}

}  // namespace

FileSet::FileSet(const Paths& paths, const FileOptions& options, const std::vector<std::string>& usual_extensions) {
  if (paths.all().empty()) throw Failure{Errc::InvalidArgument, "a data set needs at least one path"};
  for (const auto& entry : paths.all()) find(entry, options, options.extensions.empty() ? usual_extensions : options.extensions);
}

void FileSet::find(const std::string& entry, const FileOptions& options, const std::vector<std::string>& extensions) {
  auto system = options.file_system;
  auto path = entry;
  std::string shown;  // before the path, in messages
  if (!system && entry.find("://") != std::string::npos) {
    const auto url = parse_store_url(entry);
    system = open_s3_files(entry);
    path = url.bucket + (url.prefix.empty() ? "" : "/" + url.prefix);
    shown = "s3://";
  }
  while (path.size() > 1 && path.ends_with('/')) path.pop_back();
  const auto found = find_in(system.get(), path, extensions);
  if (found.files.empty()) {
    if (found.other > 0) {
      throw Failure{Errc::FileNotFound, shown + path + " holds no file that ends in " + join(extensions) + " but " + std::to_string(found.other) + " others (" + found.first_other +
                                            "); set the extensions, or name files by a glob"};
    }
    throw Failure{Errc::FileNotFound, found.below_directory ? shown + path + " holds no files" : "there is no file " + shown + path + (is_glob(path) ? " (nothing matches it)" : "")};
  }
  for (const auto& file : found.files) {
    files_.push_back({shown + file.path, file.relative, file.path, file.size});
    systems_.push_back(system);
  }
}

std::shared_ptr<arrow::io::RandomAccessFile> FileSet::open(const DataFile& file) const {
  std::shared_ptr<arrow::io::RandomAccessFile> opened;
  if (const auto& system = systems_[static_cast<std::size_t>(&file - files_.data())]) {
    opened = value(system->OpenInputFile(file.path), file.name, Errc::StorageUnavailable);
  } else {
    // Not by Arrow's path, so that the handle does not leak into processes that are started meanwhile.
    const int fd = ::open(file.path.c_str(), O_RDONLY | O_CLOEXEC);
    if (fd < 0) {
      const bool gone = errno == ENOENT || errno == ENOTDIR;
      throw Failure{gone ? Errc::FileNotFound : Errc::StorageUnavailable, "cannot open " + file.name + ": " + std::strerror(errno) + (gone ? " (it was there when the data set was made)" : "")};
    }
    auto made = arrow::io::ReadableFile::Open(fd);
    if (!made.ok()) ::close(fd);
    opened = value(std::move(made), file.name, Errc::StorageUnavailable);
  }
  const auto size = value(opened->GetSize(), file.name, Errc::StorageUnavailable);
  if (size != file.size) {
    throw Failure{Errc::FileCorrupt, file.name + " has changed since the data set was made: it had " + std::to_string(file.size) + " bytes and has " + std::to_string(size)};
  }
  return opened;
}

bool FileSet::remote(const DataFile& file) const { return systems_[static_cast<std::size_t>(&file - files_.data())] != nullptr; }

std::int64_t FileSet::changed_at(const DataFile& file) const {
  struct stat facts {};
  if (remote(file) || ::stat(file.path.c_str(), &facts) != 0) return 0;
  return std::int64_t{facts.st_mtim.tv_sec} * 1'000'000'000 + facts.st_mtim.tv_nsec;
}

std::string FileSet::fingerprint(const std::string& what) const {
  std::string all = what;
  std::int64_t bytes = 0;
  for (const auto& file : files_) {
    all += '\n' + file.key + '\t' + std::to_string(file.size);
    bytes += file.size;
  }
  return what.substr(0, what.find(' ')) + ", " + std::to_string(files_.size()) + " files, " + std::to_string(bytes) + " bytes, " + digest(all);
}

std::string digest(const std::string& text) {
  std::uint64_t hash = 0xcbf29ce484222325;  // FNV-1a
  for (const unsigned char c : text) hash = (hash ^ c) * 0x100000001b3;
  char hex[17];
  std::snprintf(hex, sizeof hex, "%016lx", static_cast<unsigned long>(hash));
  return hex;
}

std::shared_ptr<arrow::fs::FileSystem> open_s3_files(const std::string& url) {
  std::string why;
  void* const handle = open_plugin("libtroupe_s3.so", why);
  if (!handle) throw Failure{Errc::Unsupported, "'" + url + "' needs libtroupe_s3.so, which cannot be loaded: " + why + ". Build the target troupe_s3, or use a directory"};
  // Declared where it is defined, checkpoint/s3/s3_files.cpp.
  using OpenFiles = bool (*)(int abi, const StoreUrl& url, std::shared_ptr<arrow::fs::FileSystem>& made, std::string& why);
  const auto open = reinterpret_cast<OpenFiles>(dlsym(handle, "troupe_s3_files"));
  std::shared_ptr<arrow::fs::FileSystem> made;
  if (!open || !open(1, parse_store_url(url), made, why)) {
    throw Failure{Errc::Unsupported, open && !why.empty() ? why : "libtroupe_s3.so is no S3 plug-in of this version of Troupe; build both together"};
  }
  return made;
}

}  // namespace troupe::detail
