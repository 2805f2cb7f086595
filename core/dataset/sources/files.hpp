#pragma once

#include <arrow/io/type_fwd.h>

#include <troupe/dataset/sources.hpp>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace troupe::detail {

struct DataFile {
  std::string name;   ///< as messages show it
  std::string key;    ///< below the entry that found it: the same on every host, so that positions hold where files lie elsewhere
  std::string path;   ///< in the file system
  std::int64_t size = 0;
};

/// The files of a source, found once.
class FileSet {
 public:
  /// Throws Failure{FileNotFound} where an entry finds nothing, naming it and what is there instead.
  FileSet(const Paths& paths, const FileOptions& options, const std::vector<std::string>& usual_extensions);

  [[nodiscard]] const std::vector<DataFile>& files() const noexcept { return files_; }
  [[nodiscard]] const DataFile& operator[](std::size_t i) const { return files_[i]; }
  [[nodiscard]] std::size_t size() const noexcept { return files_.size(); }

  /// Throws Failure{FileNotFound, FileCorrupt}: gone, or of another size than when it was found.
  [[nodiscard]] std::shared_ptr<arrow::io::RandomAccessFile> open(const DataFile& file) const;
  /// Whether requests are dear: better few and large.
  [[nodiscard]] bool remote(const DataFile& file) const;
  /// When a local file was last written, in nanoseconds; 0: not known. A file that is written over is noticed by that.
  [[nodiscard]] std::int64_t changed_at(const DataFile& file) const;

  /// Of keys, sizes and `what` (format and options that decide what a row is).
  [[nodiscard]] std::string fingerprint(const std::string& what) const;

 private:
  void find(const std::string& entry, const FileOptions& options, const std::vector<std::string>& extensions);

  std::vector<DataFile> files_;
  std::vector<std::shared_ptr<arrow::fs::FileSystem>> systems_;  ///< by file; nullptr: this machine's
};

/// The file system of an object store, out of libtroupe_s3.so. Throws Failure{Unsupported} when this build has no plug-in.
[[nodiscard]] std::shared_ptr<arrow::fs::FileSystem> open_s3_files(const std::string& url);

/// A digest for fingerprints: the same everywhere, not cryptographic.
[[nodiscard]] std::string digest(const std::string& text);

}  // namespace troupe::detail
