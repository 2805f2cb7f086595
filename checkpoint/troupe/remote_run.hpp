#pragma once

#include <troupe/object_store.hpp>
#include <troupe/result.hpp>
#include <troupe/retention.hpp>

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

namespace troupe {

/// A run's things in an object store, under one prefix, laid out as its directory is:
///
///     reports.jsonl, result.json
///     checkpoint_000002/…, checkpoint_000002/manifest.troupe
///
/// A checkpoint's files are uploaded first and its manifest last; what has no manifest, or an object of another size than the
/// manifest says, is no checkpoint.
///
/// Threads: any, for different checkpoints. Errors: StoreFailure, and Failure for files of this host.
class RemoteRun {
 public:
  /// @param store must outlive this. @param prefix "some/prefix/run".
  RemoteRun(ObjectStore& store, std::string prefix) : store_(store), prefix_(std::move(prefix)) {}

  struct Contents {
    std::vector<CheckpointRecord> checkpoints;  ///< whole ones, oldest first; paths are URLs
    std::map<std::uint64_t, std::uint64_t> bytes;  ///< size of each of them, by index
    std::vector<std::string> leftovers;         ///< "checkpoint_000004": of an upload or removal that broke off
    bool has_reports = false;
    [[nodiscard]] bool empty() const noexcept { return checkpoints.empty() && leftovers.empty() && !has_reports; }
  };
  [[nodiscard]] Contents read();

  /// Uploads a committed checkpoint under its directory's name; one that is there with the same manifest stays as it is.
  void upload_checkpoint(const std::filesystem::path& directory);
  /// The manifest goes first: a removal that breaks off leaves no checkpoint.
  void remove_checkpoint(const std::string& name);
  /// Brings a checkpoint into `run_directory`, verified, whole or not at all.
  void download_checkpoint(const std::string& name, const std::filesystem::path& run_directory);
  /// The bytes of its manifest; empty when there is none.
  [[nodiscard]] std::string manifest_of(const std::string& name);

  /// One file of the run: reports.jsonl, result.json.
  void upload_file(const std::filesystem::path& file) { store_.put(key(file.filename().string()), file); }
  void remove_file(const std::string& name) { store_.remove(key(name)); }
  /// The object's bytes; empty when it is not there.
  [[nodiscard]] std::string read_file(const std::string& name);

  [[nodiscard]] std::string url() const { return store_.url() + "/" + prefix_; }
  [[nodiscard]] ObjectStore& store() noexcept { return store_; }

 private:
  [[nodiscard]] std::string key(const std::string& name) const { return prefix_ + "/" + name; }
  void check_sizes(const std::string& name, const std::filesystem::path& directory);

  ObjectStore& store_;
  std::string prefix_;
};

/// What `bring_down` found and did.
struct BroughtDown {
  std::vector<CheckpointRecord> remote;  ///< all that the store has, for retention; paths are those they have, or would have, here
  std::vector<std::uint64_t> to_upload;  ///< checkpoints that only this host has
  std::vector<std::string> warnings;
};

/// Makes a run's directory on this host what the store says, before it goes on: the store's history is the truth. Reports are
/// taken from the store unless this host's only add to them. Checkpoints here of the same name but another manifest, or of
/// another history, are removed. The newest checkpoint that verifies is downloaded, and the best, unless they are here.
BroughtDown bring_down(RemoteRun& remote, const std::filesystem::path& run_directory, const CheckpointConfig& config);

}  // namespace troupe
