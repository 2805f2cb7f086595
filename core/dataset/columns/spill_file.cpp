#include "spill_file.hpp"

#include <arrow/io/file.h>
#include <arrow/ipc/reader.h>
#include <arrow/ipc/writer.h>
#include <arrow/record_batch.h>
#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>

#include "arrow_errors.hpp"

namespace troupe::detail {

namespace {

int open_unnamed(const std::filesystem::path& directory) {
  int fd = ::open(directory.c_str(), O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
  if (fd < 0 && (errno == EOPNOTSUPP || errno == EISDIR || errno == ENOENT)) {
    auto name = (directory / "troupe-spill-XXXXXX").string();
    fd = ::mkostemp(name.data(), O_CLOEXEC);
    if (fd >= 0) ::unlink(name.c_str());
  }
  if (fd < 0) throw Failure{Errc::StorageUnavailable, "cannot make a temporary file in " + directory.string() + ": " + std::strerror(errno)};
  return fd;
}

}  // namespace

SpillFile::SpillFile(const std::filesystem::path& directory) : directory_(directory.empty() ? std::filesystem::temp_directory_path() : directory) {
  const auto where = "temporary file in " + directory_.string();
  const int fd = open_unnamed(directory_);
  auto file = arrow::io::ReadableFile::Open(fd);
  if (!file.ok()) ::close(fd);
  file_ = value(std::move(file), where, Errc::StorageUnavailable);
  const int copy = ::fcntl(fd, F_DUPFD_CLOEXEC, 0);
  if (copy < 0) throw Failure{Errc::StorageUnavailable, where + ": " + std::strerror(errno)};
  auto out = arrow::io::FileOutputStream::Open(copy);
  if (!out.ok()) ::close(copy);
  out_ = value(std::move(out), where, Errc::StorageUnavailable);
}

SpillFile::~SpillFile() = default;

std::shared_ptr<arrow::RecordBatchReader> SpillFile::write_run(const std::shared_ptr<arrow::RecordBatch>& rows, std::int64_t batch_rows) {
  const auto where = "writing sorted rows to " + directory_.string();
  const auto begin = value(out_->Tell(), where, Errc::StorageUnavailable);
  const auto writer = value(arrow::ipc::MakeStreamWriter(out_, rows->schema()), where, Errc::StorageUnavailable);
  for (std::int64_t at = 0; at < rows->num_rows(); at += batch_rows) check(writer->WriteRecordBatch(*rows->Slice(at, batch_rows)), where, Errc::StorageUnavailable);
  check(writer->Close(), where, Errc::StorageUnavailable);
  const auto end = value(out_->Tell(), where, Errc::StorageUnavailable);
  const auto stream = value(arrow::io::RandomAccessFile::GetStream(file_, begin, end - begin), where, Errc::StorageUnavailable);
  return value(arrow::ipc::RecordBatchStreamReader::Open(stream), where, Errc::StorageUnavailable);
}

}  // namespace troupe::detail
