#include "spill.hpp"

#include <arrow/buffer.h>
#include <arrow/io/memory.h>
#include <arrow/ipc/reader.h>
#include <arrow/ipc/writer.h>
#include <arrow/record_batch.h>
#include <arrow/type.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <fcntl.h>
#include <filesystem>
#include <unistd.h>

#include "arrow_check.hpp"

namespace troupe::detail {

namespace {

int open_nameless() {
  std::string name = (std::filesystem::temp_directory_path() / "troupe-data-XXXXXX").string();
  const int file = ::mkostemp(name.data(), O_CLOEXEC);
  if (file < 0) throw Failure{Errc::StorageUnavailable, "a temporary file for rows cannot be made, " + name + ": " + std::strerror(errno) + " (TMPDIR says where)"};
  ::unlink(name.c_str());
  return file;
}

void write_all(int file, const std::uint8_t* data, std::int64_t bytes, std::int64_t offset) {
  while (bytes > 0) {
    const auto wrote = ::pwrite(file, data, static_cast<std::size_t>(bytes), offset);
    if (wrote < 0 && errno == EINTR) continue;
    if (wrote <= 0) throw Failure{Errc::StorageUnavailable, std::string{"writing rows to a temporary file: "} + std::strerror(errno) + " (TMPDIR says where it lies)"};
    data += wrote;
    offset += wrote;
    bytes -= wrote;
  }
}

}  // namespace

SpillStore::~SpillStore() {
  if (file_ >= 0) ::close(file_);
}

std::size_t SpillStore::add(const Batch& rows) {
  const std::int64_t bytes = num_bytes({rows});
  std::unique_lock lock{mutex_};
  Entry entry;
  entry.num_rows = rows->num_rows();
  if (bytes <= memory_left_) {
    memory_left_ -= bytes;
    entry.rows = rows;
    entries_.push_back(std::move(entry));
    return entries_.size() - 1;
  }
  memory_left_ = 0;  // what comes later goes to the file too: order of access is order of writing
  if (file_ < 0) file_ = open_nameless();
  lock.unlock();
  // A stream of its own for each batch: with its schema and dictionaries, so that it can be read by itself.
  const auto sink = check(arrow::io::BufferOutputStream::Create(bytes + 4096), "spilling rows");
  const auto writer = check(arrow::ipc::MakeStreamWriter(sink, rows->schema()), "spilling rows");
  check(writer->WriteRecordBatch(*rows), "spilling rows");
  check(writer->Close(), "spilling rows");
  const auto buffer = check(sink->Finish(), "spilling rows");
  entry.bytes = buffer->size();
  lock.lock();
  entry.offset = end_;
  end_ += entry.bytes;
  lock.unlock();
  write_all(file_, buffer->data(), entry.bytes, entry.offset);
  lock.lock();
  entries_.push_back(std::move(entry));
  return entries_.size() - 1;
}

Batch SpillStore::get(std::size_t number) const {
  Entry entry;
  {
    const std::lock_guard lock{mutex_};
    entry = entries_.at(number);
  }
  if (entry.rows) return entry.rows;
  auto buffer = check(arrow::AllocateBuffer(entry.bytes), "reading spilled rows");
  std::int64_t done = 0;
  while (done < entry.bytes) {
    const auto got = ::pread(file_, buffer->mutable_data() + done, static_cast<std::size_t>(entry.bytes - done), entry.offset + done);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) throw Failure{Errc::StorageUnavailable, std::string{"reading rows from a temporary file: "} + std::strerror(errno)};
    done += got;
  }
  const auto reader = check(arrow::ipc::RecordBatchStreamReader::Open(std::make_shared<arrow::io::BufferReader>(std::shared_ptr<arrow::Buffer>{std::move(buffer)})), "reading spilled rows");
  Batch rows;
  check(reader->ReadNext(&rows), "reading spilled rows");
  return rows;
}

std::int64_t SpillStore::rows(std::size_t number) const {
  const std::lock_guard lock{mutex_};
  return entries_.at(number).num_rows;
}

std::size_t SpillStore::size() const {
  const std::lock_guard lock{mutex_};
  return entries_.size();
}

std::int64_t SpillStore::file_bytes() const {
  const std::lock_guard lock{mutex_};
  return end_;
}

std::unique_ptr<FragmentReader> batch_reader(Batch rows, std::int64_t fragment, std::int64_t first_row, const ReadOptions& options) {
  struct Reader : FragmentReader {
    Batch rows;
    std::int64_t fragment = 0;
    std::int64_t at = 0;
    std::int64_t block_rows = 1;
    std::optional<Block> next() override {
      if (!rows || at >= rows->num_rows()) return std::nullopt;
      const std::int64_t count = std::min(block_rows, rows->num_rows() - at);
      Block block{at == 0 && count == rows->num_rows() ? rows : rows->Slice(at, count), fragment, at, count};
      at += count;
      return block;
    }
  };
  auto reader = std::make_unique<Reader>();
  if (rows && !options.columns.empty()) {
    std::vector<int> indices;
    for (const auto& column : options.columns) indices.push_back(rows->schema()->GetFieldIndex(column));
    rows = check(rows->SelectColumns(indices), "reading rows");
  }
  reader->rows = std::move(rows);
  reader->fragment = fragment;
  reader->at = first_row;
  reader->block_rows = std::max<std::int64_t>(options.block_rows, 1);
  return reader;
}

namespace {

class SpilledSource : public Source {
 public:
  SpilledSource(std::shared_ptr<const SpillStore> store, std::shared_ptr<arrow::Schema> schema, std::string fingerprint)
      : store_(std::move(store)), schema_(std::move(schema)), fingerprint_(std::move(fingerprint)) {
    for (std::size_t i = 0; i < store_->size(); ++i) {
      Fragment fragment;
      fragment.path = "kept rows, block " + std::to_string(i);
      fragment.num_rows = store_->rows(i);
      fragments_.push_back(std::move(fragment));
    }
  }
  const std::shared_ptr<arrow::Schema>& schema() const override { return schema_; }
  const std::vector<Fragment>& fragments() const override { return fragments_; }
  std::unique_ptr<FragmentReader> open(std::int64_t fragment, std::int64_t first_row, const ReadOptions& options) const override {
    return batch_reader(store_->get(static_cast<std::size_t>(fragment)), fragment, first_row, options);
  }
  std::int64_t count_rows(std::int64_t fragment) const override { return *fragments_[static_cast<std::size_t>(fragment)].num_rows; }
  std::string fingerprint() const override { return fingerprint_; }

 private:
  std::shared_ptr<const SpillStore> store_;
  std::shared_ptr<arrow::Schema> schema_;
  std::string fingerprint_;
  std::vector<Fragment> fragments_;
};

}  // namespace

SourcePtr spilled_source(std::shared_ptr<const SpillStore> store, std::shared_ptr<arrow::Schema> schema, std::string fingerprint) {
  return std::make_shared<SpilledSource>(std::move(store), std::move(schema), std::move(fingerprint));
}

}  // namespace troupe::detail
