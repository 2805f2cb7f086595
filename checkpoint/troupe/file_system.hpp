#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

// Every operation of a save, a commit and a load on a disk, so that tests can stop, lose, tear and refuse each of them.

namespace troupe {

/// An open regular file.
///
/// Threads: one caller at a time; several objects may have the same file open.
/// Errors: Failure{StorageUnavailable} naming the path, what was tried and the system's reason.
class File {
 public:
  virtual ~File() = default;

  [[nodiscard]] virtual std::uint64_t size() = 0;
  /// Reads all of `into`. Failure{FileCorrupt} when the file ends before.
  virtual void read(std::span<std::byte> into, std::uint64_t offset) = 0;
  /// Hints that [offset, offset + bytes) is read soon.
  virtual void will_read(std::uint64_t /*offset*/, std::uint64_t /*bytes*/) {}
  /// Makes the file `size` bytes long and takes the room for them; what is there below that stays.
  virtual void set_size(std::uint64_t size) = 0;
  virtual void write(std::span<const std::byte> bytes, std::uint64_t offset) = 0;

  /// Begins to write whole pages past the cache: address, length and offset are multiples of `page_bytes`. The memory is in
  /// use until `wait_write(slot)` has returned; `slot` < `num_slots` is free before.
  virtual void begin_write(int slot, std::span<const std::byte> pages, std::uint64_t offset) = 0;
  virtual void wait_write(int slot) = 0;

  /// What was written, the size included, survives a power cut once this returns. A file for which it failed must be given
  /// up: the system may have dropped the pages, and a second call would succeed without them.
  virtual void sync() = 0;

  static constexpr std::size_t page_bytes = 4096;
  static constexpr int num_slots = 8;
};

/// Paths are as the operating system's. The last part of a path is never followed when it is a symbolic link.
///
/// Threads: any. Errors: as File's; Failure{FileNotFound} where a path that must exist does not.
class FileSystem {
 public:
  enum class Kind : std::uint8_t { File, Directory, Other };  ///< Other: a symbolic link, a device, …
  enum class Access : std::uint8_t { Read, Write };           ///< Write: made when missing, never cut
  struct Entry {
    std::string name;
    Kind kind = Kind::File;
  };

  virtual ~FileSystem() = default;

  [[nodiscard]] virtual std::unique_ptr<File> open(const std::filesystem::path& path, Access access) = 0;
  /// Nothing when there is nothing.
  [[nodiscard]] virtual std::optional<Kind> kind(const std::filesystem::path& path) = 0;
  /// Sorted by name.
  [[nodiscard]] virtual std::vector<Entry> list(const std::filesystem::path& directory) = 0;
  /// Makes one directory in one that exists; fine when it is there.
  virtual void make_directory(const std::filesystem::path& path) = 0;
  /// Atomic; replaces a file, never a directory that holds something.
  virtual void rename(const std::filesystem::path& from, const std::filesystem::path& to) = 0;
  /// Swaps two directories, atomically. False, and nothing has changed, where the file system cannot.
  [[nodiscard]] virtual bool exchange(const std::filesystem::path& one, const std::filesystem::path& other) = 0;
  virtual void remove_file(const std::filesystem::path& path) = 0;
  virtual void remove_directory(const std::filesystem::path& path) = 0;  ///< an empty one
  /// The directory's entries survive a power cut once this returns.
  virtual void sync_directory(const std::filesystem::path& path) = 0;

  /// `File::sync` of all `files` and `sync_directory` of all `directories`, in any order. A flush of the disk takes milliseconds, and
  /// those that are asked for at once share one.
  virtual void sync_all(std::span<const std::unique_ptr<File>> files, std::span<const std::filesystem::path> directories);

  // ---- made of the above ---------------------------------------------------------------------------------------
  /// With its parents; each new entry is synced.
  void make_directories(const std::filesystem::path& path);
  /// A directory with all in it, or a file or link; fine when there is nothing.
  void remove_tree(const std::filesystem::path& path);
  /// The file is the old or the new one, never torn: written under another name, synced, renamed, its directory synced.
  void write_atomically(const std::filesystem::path& path, std::string_view bytes);
  /// The whole of a file of at most `limit` bytes; Failure{FileCorrupt} when it is longer.
  [[nodiscard]] std::string read_all(const std::filesystem::path& path, std::uint64_t limit);
};

/// The machine's own. O_DIRECT where the file system takes it, io_uring or a thread; else through the page cache.
[[nodiscard]] FileSystem& real_file_system();

}  // namespace troupe
