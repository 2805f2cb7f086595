#pragma once

#include <troupe/errors.hpp>

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

namespace troupe {

/// Why a store's call failed, as far as what to do next depends on it.
enum class StoreError : std::uint8_t {
  Throttled,   ///< asked to slow down
  Server,      ///< 5xx: the store's own trouble
  Timeout,     ///< no answer, or nothing moved, in time
  Connection,  ///< refused, reset, or the name cannot be resolved
  Truncated,   ///< fewer bytes came than were promised
  PastEnd,     ///< the object has fewer bytes than were asked for
  Denied,      ///< wrong key, or not allowed
  NoBucket,    ///< the bucket does not exist
  NotFound,    ///< the object does not exist
  Refused,     ///< the store does not take such a request
  Local,       ///< a file of this host
  Cancelled,   ///< `cancel` was called
};
/// Whether the same call may work a moment later.
[[nodiscard]] bool worth_retrying(StoreError error) noexcept;
[[nodiscard]] std::string_view name(StoreError error) noexcept;

/// What every call of a store throws. The text names store, key and what to do; never credentials.
class StoreFailure : public Failure {
 public:
  StoreFailure(StoreError error, const std::string& text);
  [[nodiscard]] StoreError error() const noexcept { return error_; }

 private:
  StoreError error_;
};

struct ObjectInfo {
  std::string key;
  std::uint64_t bytes = 0;
  bool operator==(const ObjectInfo&) const = default;
};

/// Objects by key: what Troupe needs of an S3-compatible store. An object is there whole or not at all.
///
/// Threads: any. Errors: StoreFailure.
class ObjectStore {
 public:
  virtual ~ObjectStore() = default;
  /// For messages: "s3://bucket".
  [[nodiscard]] virtual std::string url() const = 0;
  /// Throws when the store cannot be used at all: no bucket, wrong key, no answer. One request.
  virtual void check() = 0;
  /// Makes or replaces the object; large files in parts, several at a time, in bounded memory. When it throws, the object is
  /// what it was before. The file must not change meanwhile, except that it may grow: its size is taken at the beginning.
  virtual void put(const std::string& key, const std::filesystem::path& file) = 0;
  /// Reads exactly `into.size()` bytes from `begin` on.
  virtual void get(const std::string& key, std::uint64_t begin, std::span<std::byte> into) = 0;
  [[nodiscard]] virtual std::optional<ObjectInfo> head(const std::string& key) = 0;
  /// All objects whose key begins with `prefix` + "/", by key; those under "" are all. Nothing there: empty.
  [[nodiscard]] virtual std::vector<ObjectInfo> list(const std::string& prefix) = 0;
  /// An object that is not there is fine.
  virtual void remove(const std::string& key) = 0;
  /// Ends calls under way and lets later ones fail with Cancelled, as soon as possible. Threads: any.
  virtual void cancel() noexcept {}
};

/// Downloads one object of `bytes` to a new or replaced file, in ranges, `num_threads` at a time; fsyncs it.
void download(ObjectStore& store, const std::string& key, std::uint64_t bytes, const std::filesystem::path& file, int num_threads = 4);

/// Objects as files below a directory: for tests, and the measure of what a store must do.
[[nodiscard]] std::unique_ptr<ObjectStore> make_directory_store(std::filesystem::path root);

}  // namespace troupe
