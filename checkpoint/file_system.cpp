#include <troupe/errors.hpp>
#include <troupe/file_system.hpp>

namespace troupe {

namespace fs = std::filesystem;

void FileSystem::sync_all(std::span<const std::unique_ptr<File>> files, std::span<const fs::path> directories) {
  for (const auto& file : files) file->sync();
  for (const auto& directory : directories) sync_directory(directory);
}

void FileSystem::make_directories(const fs::path& path) {
  if (path.empty() || kind(path / ".") == Kind::Directory) return;  // also one that is reached by a link
  const auto parent = path.has_filename() ? path.parent_path() : path.parent_path().parent_path();
  make_directories(parent);
  make_directory(path);
  sync_directory(parent.empty() ? fs::path{"."} : parent);
}

void FileSystem::remove_tree(const fs::path& path) {
  const auto found = kind(path);
  if (!found) return;
  if (*found != Kind::Directory) return remove_file(path);
  for (const auto& entry : list(path)) {
    if (entry.kind == Kind::Directory) remove_tree(path / entry.name);
    else remove_file(path / entry.name);
  }
  remove_directory(path);
}

void FileSystem::write_atomically(const fs::path& path, std::string_view bytes) {
  const auto temporary = fs::path{path} += ".tmp";
  if (kind(temporary)) remove_file(temporary);  // of a writer that was killed
  try {
    const auto file = open(temporary, Access::Write);
    file->set_size(bytes.size());
    file->write(std::as_bytes(std::span{bytes}), 0);
    file->sync();
  } catch (const Failure&) {
    try {
      remove_file(temporary);
    } catch (const Failure&) {
      // The first reason is the one to tell.
    }
    throw;
  }
  rename(temporary, path);
  sync_directory(path.has_parent_path() ? path.parent_path() : fs::path{"."});
}

std::string FileSystem::read_all(const fs::path& path, std::uint64_t limit) {
  const auto file = open(path, Access::Read);
  const auto size = file->size();
  if (size > limit) {
    throw Failure{Errc::FileCorrupt,
                  path.string() + ": has " + std::to_string(size) + " bytes, at most " + std::to_string(limit) + " are expected"};
  }
  std::string bytes(size, '\0');
  file->read(std::as_writable_bytes(std::span{bytes}), 0);
  return bytes;
}

}  // namespace troupe
