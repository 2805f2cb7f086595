#pragma once

#include <troupe/file_system.hpp>

#include <cstdint>
#include <map>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

namespace troupe::test {

/// A disk in memory that keeps no promise but those of POSIX: what was not synced may be lost, in part, in any order. A file's data and
/// size last by its `sync`, a directory's entry by the directory's; a rename is atomic. Values: copying one copies the disk.
///
/// Threads: any.
class SimulatedFileSystem final : public FileSystem {
 public:
  /// Thrown by the operation at which the machine stops, and by every one after it. No Failure: nobody catches it.
  struct Stopped {};
  enum class Kept : std::uint8_t { Nothing, Everything, Parts };  ///< of what was not synced

  SimulatedFileSystem();
  SimulatedFileSystem(const SimulatedFileSystem& other);

  /// The machine stops before the change number `change` from now on (0: the next).
  void stop_at(std::uint64_t change) { stop_at_ = num_changes_ + change; }
  /// Operation number `operation` from now on, reads too, fails with `error`. A write then writes half; a sync drops what it should have
  /// kept.
  void fail_at(std::uint64_t operation, int error) { fail_at_ = num_operations_ + operation, error_ = error; }
  [[nodiscard]] std::uint64_t num_changes() const { return num_changes_; }
  [[nodiscard]] std::uint64_t num_operations() const { return num_operations_; }
  [[nodiscard]] bool has_failed() const { return failed_; }

  /// The process that was stopped was but killed: the next one finds all of what it did, synced or not.
  void start_again();
  /// The machine starts again and finds what lasted. Kept::Parts: by halves of pages, drawn by `seed`.
  void restart(Kept kept, std::uint64_t seed = 0);
  void set_can_exchange(bool can) { can_exchange_ = can; }
  /// Makes everything last.
  void settle();
  [[nodiscard]] std::string& bytes(const std::filesystem::path& file);
  [[nodiscard]] std::vector<std::filesystem::path> files_below(const std::filesystem::path& directory);
  void make_link(const std::filesystem::path& path);
  void write_file(const std::filesystem::path& path, std::string_view bytes);

  std::unique_ptr<File> open(const std::filesystem::path& path, Access access) override;
  std::optional<Kind> kind(const std::filesystem::path& path) override;
  std::vector<Entry> list(const std::filesystem::path& directory) override;
  void make_directory(const std::filesystem::path& path) override;
  void rename(const std::filesystem::path& from, const std::filesystem::path& to) override;
  bool exchange(const std::filesystem::path& one, const std::filesystem::path& other) override;
  void remove_file(const std::filesystem::path& path) override;
  void remove_directory(const std::filesystem::path& path) override;
  void sync_directory(const std::filesystem::path& path) override;

 private:
  friend class SimulatedFile;
  struct Change {
    std::uint64_t offset = 0;
    std::string bytes;
    std::optional<std::uint64_t> size;  ///< set: a change of size
  };
  struct Node {
    Kind kind = Kind::File;
    std::string now, durable;
    std::vector<Change> pending;
    std::map<std::string, int> entries, durable_entries;
  };
  struct Place {
    int directory = 0;
    std::string name;
    bool operator==(const Place&) const = default;
  };
  struct Move {  ///< of entries: made (no from), removed (no to), renamed, exchanged
    std::optional<Place> from, to;
    int node = 0;
    std::optional<int> back = {};  ///< exchanged: what goes from `to` to `from`
  };

  void count(const std::filesystem::path& path, const char* what, bool changes);
  [[nodiscard]] std::optional<int> find(const std::filesystem::path& path) const;
  [[nodiscard]] int need(const std::filesystem::path& path, const char* what) const;
  [[nodiscard]] Place place_of(const std::filesystem::path& path, const char* what) const;
  int add(const Place& place, Kind kind);
  void move(Move move);
  void keep(const Move& move);
  static void apply(std::string& bytes, const Change& change);

  mutable std::recursive_mutex mutex_;
  std::vector<Node> nodes_;
  std::vector<Move> moves_;
  std::uint64_t num_changes_ = 0, num_operations_ = 0;
  std::optional<std::uint64_t> stop_at_, fail_at_;
  int error_ = 0;
  bool can_exchange_ = true;
  bool stopped_ = false, failed_ = false;
};

}  // namespace troupe::test
