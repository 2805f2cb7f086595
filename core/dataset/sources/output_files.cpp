#include "output_files.hpp"

#include <arrow/filesystem/filesystem.h>
#include <arrow/io/file.h>
#include <arrow/record_batch.h>
#include <fcntl.h>
#include <stdio.h>
#include <unistd.h>

#include <troupe/storage_path.hpp>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>

#include "../columns/arrow_errors.hpp"
#include "files.hpp"

namespace troupe::detail {

namespace {

[[noreturn]] void fail_errno(const std::string& what, const std::string& path, int error) {
  throw Failure{Errc::StorageUnavailable, "cannot " + what + " " + path + ": " + std::strerror(error)};
}

[[noreturn]] void refuse(const std::string& path) { throw Failure{Errc::AlreadyExists, path + " is there already; write to another directory or with another prefix"}; }

/// A file that gets its name when it is whole.
class Output {
 public:
  virtual ~Output() = default;
  virtual const std::shared_ptr<arrow::io::OutputStream>& stream() const = 0;
  virtual void commit() = 0;
};

void sync_directory(const std::string& path) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) fail_errno("open", path, errno);
  const int error = ::fsync(fd) != 0 ? errno : 0;
  ::close(fd);
  if (error) fail_errno("fsync", path, error);
}

class LocalOutput final : public Output {
 public:
  LocalOutput(const std::string& directory, const std::string& name) : directory_(directory), path_(directory + "/" + name), hidden_(directory + "/." + name + ".tmp") {
    if (::access(path_.c_str(), F_OK) == 0) refuse(path_);
    const int fd = ::open(hidden_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    if (fd < 0) fail_errno("write", hidden_, errno);
    auto made = arrow::io::FileOutputStream::Open(fd);
    if (!made.ok()) ::close(fd);
    file_ = value(std::move(made), path_, Errc::StorageUnavailable);
    stream_ = file_;
  }
  ~LocalOutput() override {
    if (committed_) return;
    (void)file_->Close();
    ::unlink(hidden_.c_str());
  }
  const std::shared_ptr<arrow::io::OutputStream>& stream() const override { return stream_; }
  void commit() override {
    if (::fsync(file_->file_descriptor()) != 0) fail_errno("fsync", hidden_, errno);
    check(file_->Close(), path_, Errc::StorageUnavailable);
    int error = ::renameat2(AT_FDCWD, hidden_.c_str(), AT_FDCWD, path_.c_str(), RENAME_NOREPLACE) != 0 ? errno : 0;
    if (error == EINVAL || error == ENOSYS) {  // a file system that cannot promise it
      if (::access(path_.c_str(), F_OK) == 0) refuse(path_);
      error = ::rename(hidden_.c_str(), path_.c_str()) != 0 ? errno : 0;
    }
    if (error == EEXIST) refuse(path_);
    if (error) fail_errno("rename " + hidden_ + " to", path_, error);
    committed_ = true;
    sync_directory(directory_);
  }

 private:
  std::string directory_;
  std::string path_;
  std::string hidden_;
  std::shared_ptr<arrow::io::FileOutputStream> file_;
  std::shared_ptr<arrow::io::OutputStream> stream_;
  bool committed_ = false;
};

class RemoteOutput final : public Output {
 public:
  RemoteOutput(arrow::fs::FileSystem& system, const std::string& path) : path_(path) {
    const auto there = value(system.GetFileInfo(path), "s3://" + path, Errc::StorageUnavailable);
    if (there.type() != arrow::fs::FileType::NotFound) refuse("s3://" + path);
    stream_ = value(system.OpenOutputStream(path), "s3://" + path, Errc::StorageUnavailable);
  }
  ~RemoteOutput() override {
    if (!committed_) (void)stream_->Abort();
  }
  const std::shared_ptr<arrow::io::OutputStream>& stream() const override { return stream_; }
  void commit() override {
    check(stream_->Close(), "s3://" + path_, Errc::StorageUnavailable);
    committed_ = true;
  }

 private:
  std::string path_;
  std::shared_ptr<arrow::io::OutputStream> stream_;
  bool committed_ = false;
};

/// Where files go: a directory of this machine, or a prefix in an object store.
class Place {
 public:
  explicit Place(const std::string& directory) : directory_(directory) {
    while (directory_.size() > 1 && directory_.ends_with('/')) directory_.pop_back();
    if (directory.find("://") != std::string::npos) {
      const auto url = parse_store_url(directory);
      system_ = open_s3_files(directory);
      directory_ = url.bucket + (url.prefix.empty() ? "" : "/" + url.prefix);
      return;
    }
    std::error_code error;
    if (directory_.empty()) throw Failure{Errc::InvalidArgument, "a directory to write to is missing"};
    const bool made = std::filesystem::create_directories(directory_, error);
    if (error) throw Failure{Errc::StorageUnavailable, "cannot make directory " + directory_ + ": " + error.message()};
    if (made) sync_directory(std::filesystem::absolute(directory_).parent_path().string());
  }

  std::unique_ptr<Output> open(const std::string& name) const {
    if (system_) return std::make_unique<RemoteOutput>(*system_, directory_ + "/" + name);
    return std::make_unique<LocalOutput>(directory_, name);
  }
  std::string shown(const std::string& name) const { return (system_ ? "s3://" : "") + directory_ + "/" + name; }

 private:
  std::string directory_;
  std::shared_ptr<arrow::fs::FileSystem> system_;
};

std::string numbered(const WriteOptions& options, std::size_t number, const std::string& extension) {
  const auto digits = std::to_string(number);
  return options.prefix + "-" + std::string(digits.size() < 5 ? 5 - digits.size() : 0, '0') + digits + extension;
}

}  // namespace

std::vector<std::string> write_files(BatchStream rows, const std::string& directory, const WriteOptions& options, const std::string& extension, const MakeWriter& make) {
  if (options.rows_per_file < 0) throw Failure{Errc::InvalidArgument, "rows_per_file must be at least 0"};
  if (options.prefix.empty() || options.prefix.find('/') != std::string::npos || options.prefix[0] == '.' || options.prefix[0] == '_') throw Failure{Errc::InvalidArgument, "the prefix '" + options.prefix + "' is no beginning of a visible file's name"};
  const Place place{directory};
  std::vector<std::string> paths;
  std::unique_ptr<Output> output;
  std::unique_ptr<FormatWriter> writer;
  std::int64_t left = 0;
  const auto open = [&] {
    const auto name = numbered(options, paths.size(), extension);
    output = place.open(name);
    writer = make(output->stream(), place.shown(name));
    left = options.rows_per_file;
  };
  const auto close = [&] {
    writer->finish();
    output->commit();
    paths.push_back(place.shown(numbered(options, paths.size(), extension)));
    writer.reset();
    output.reset();
  };
  while (auto batch = rows.next()) {
    while (batch->num_rows() > 0) {
      if (!writer) open();
      const auto taken = options.rows_per_file == 0 ? batch->num_rows() : std::min(left, batch->num_rows());
      writer->write(batch->Slice(0, taken));
      batch = batch->Slice(taken);
      if ((left -= taken) == 0 && options.rows_per_file > 0) close();
    }
  }
  if (!writer && paths.empty()) open();  // no rows: a file that knows the columns
  if (writer) close();
  return paths;
}

}  // namespace troupe::detail
