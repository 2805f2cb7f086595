#include "text_files.hpp"

#include <arrow/buffer.h>
#include <arrow/io/compressed.h>
#include <arrow/io/interfaces.h>
#include <arrow/record_batch.h>
#include <arrow/util/compression.h>
#include <arrow/util/utf8.h>

#include <algorithm>
#include <cstring>

#include "../columns/arrow_errors.hpp"
#include "text_reader.hpp"

namespace troupe::detail {

namespace {

constexpr std::int64_t kRemoteBufferBytes = 4 << 20;

struct Compression {
  const char* extension;
  arrow::Compression::type type;
};
constexpr Compression kCompressions[] = {{".gz", arrow::Compression::GZIP}, {".bz2", arrow::Compression::BZ2}, {".zst", arrow::Compression::ZSTD}, {".lz4", arrow::Compression::LZ4_FRAME}, {".br", arrow::Compression::BROTLI}};

const Compression* compression_of(const std::string& path) {
  for (const auto& known : kCompressions) {
    if (path.ends_with(known.extension)) return &known;
  }
  return nullptr;
}

std::vector<std::string> with_compressed(const std::vector<std::string>& extensions) {
  auto all = extensions;
  for (const auto& extension : extensions) {
    for (const auto& known : kCompressions) all.push_back(extension + known.extension);
  }
  return all;
}

/// A file from `begin` on; where it ends before its size, reading fails: it was cut meanwhile.
class FromPosition final : public arrow::io::InputStream {
 public:
  FromPosition(std::shared_ptr<arrow::io::RandomAccessFile> file, std::int64_t begin, std::int64_t size) : file_(std::move(file)), at_(begin), size_(size) {}
  ~FromPosition() override { (void)FromPosition::Close(); }
  arrow::Status Close() override {
    closed_ = true;
    return file_->closed() ? arrow::Status::OK() : file_->Close();
  }
  bool closed() const override { return closed_; }
  arrow::Result<std::int64_t> Tell() const override { return at_; }
  arrow::Result<std::int64_t> Read(std::int64_t nbytes, void* out) override {
    ARROW_ASSIGN_OR_RAISE(const auto read, file_->ReadAt(at_, std::min(nbytes, size_ - at_), out));
    if (read == 0 && nbytes > 0 && at_ < size_) return arrow::Status::Invalid("the file was cut at byte ", at_, " of ", size_, " while it was read");
    at_ += read;
    return read;
  }
  arrow::Result<std::shared_ptr<arrow::Buffer>> Read(std::int64_t nbytes) override {
    ARROW_ASSIGN_OR_RAISE(auto buffer, arrow::AllocateResizableBuffer(nbytes));
    ARROW_ASSIGN_OR_RAISE(const auto read, Read(nbytes, buffer->mutable_data()));
    ARROW_RETURN_NOT_OK(buffer->Resize(read));
    return std::shared_ptr<arrow::Buffer>{std::move(buffer)};
  }

 private:
  std::shared_ptr<arrow::io::RandomAccessFile> file_;
  std::int64_t at_;
  std::int64_t size_;
  bool closed_ = false;
};

}  // namespace

TextFiles::TextFiles(const Paths& paths, const FileOptions& files, const LineOptions& lines, TextFormat format)
    : files_(paths, files, with_compressed(format.extensions)), format_(std::move(format)), header_checked_(files_.size(), false) {
  if (lines.fragment_bytes < 1 || lines.max_line_bytes < 1 || lines.max_line_bytes > (1 << 30)) {
    throw Failure{Errc::InvalidArgument, "fragment_bytes must be at least 1 and max_line_bytes from 1 to 1 GiB"};
  }
  arrow::util::InitializeUTF8();  // until then Arrow finds all bytes valid
  format_.split.max_record_bytes = lines.max_line_bytes;
  for (std::size_t i = 0; i < files_.size(); ++i) {
    const auto& file = files_[i];
    const bool whole = compression_of(file.path) || format_.split.quotes == SplitOptions::Quotes::Lines;
    const auto step = whole ? std::max<std::int64_t>(file.size, 1) : lines.fragment_bytes;
    for (std::int64_t begin = 0; begin < file.size; begin += step) {
      const auto end = std::min(begin + step, file.size);
      ranges_.push_back({i, begin, whole ? -1 : end});
      fragments_.push_back({whole || step >= file.size ? file.name : file.name + ", bytes " + std::to_string(begin) + "-" + std::to_string(end), std::nullopt, end - begin});
    }
  }
  format_.name += " " + std::to_string(lines.fragment_bytes) + " " + std::to_string(lines.max_line_bytes) + (format_.header ? " header" : "") + (format_.split.drop_empty ? "" : " empty");
}

std::string TextFiles::fingerprint() const { return files_.fingerprint(format_.name); }

SplitOptions TextFiles::split_options(const Range& range) const {
  auto options = format_.split;
  if (files_.remote(files_[range.file])) options.buffer_bytes = std::max(options.buffer_bytes, kRemoteBufferBytes);
  return options;
}

std::unique_ptr<RecordSplitter> TextFiles::splitter(const Range& range, const SplitOptions& options) const {
  const auto& file = files_[range.file];
  const auto from = range.begin == 0 ? 0 : range.begin - 1;
  std::shared_ptr<arrow::io::InputStream> input = std::make_shared<FromPosition>(files_.open(file), from, file.size);
  if (const auto* compression = compression_of(file.path)) {
    const auto codec = value(arrow::util::Codec::Create(compression->type), file.name, Errc::Unsupported);
    input = value(arrow::io::CompressedInputStream::Make(codec.get(), input), file.name, Errc::FileCorrupt);
  }
  return std::make_unique<RecordSplitter>(std::move(input), file.name, range.begin, range.end, options);
}

TextFiles::Head TextFiles::head(std::int64_t bytes) const {
  for (std::size_t i = 0; i < files_.size(); ++i) {
    auto options = format_.split;
    options.buffer_bytes = bytes;
    options.max_records = bytes;
    Head head{&files_[i], {}};
    if (files_[i].size > 0 && splitter({i, 0, -1}, options)->next(head.chunk)) return head;
  }
  return {};
}

void TextFiles::check_header_of(std::size_t file) const {
  if (!format_.header) return;
  {
    const std::lock_guard lock{mutex_};
    if (header_checked_[file]) return;
  }
  auto options = format_.split;
  options.max_records = 1;
  options.buffer_bytes = 64 << 10;
  RecordChunk chunk;
  if (splitter({file, 0, -1}, options)->next(chunk)) {
    if (chunk.records[0].problem) throw Failure{Errc::DataMalformed, files_[file].name + ", line 1: " + chunk.records[0].problem};
    check_header(std::string{bytes_of(chunk.bytes->data(), chunk, 0, 1)}, files_[file]);
  }
  const std::lock_guard lock{mutex_};
  header_checked_[file] = true;
}

std::int64_t TextFiles::lines_before(const Range& range) const {
  const auto& file = files_[range.file];
  if (range.begin == 0) return 0;
  const auto input = files_.open(file);
  std::vector<char> buffer(1 << 20);
  std::int64_t lines = 0;
  for (std::int64_t at = 0; at < range.begin - 1;) {
    const auto read = value(input->ReadAt(at, std::min<std::int64_t>(static_cast<std::int64_t>(buffer.size()), range.begin - 1 - at), buffer.data()), file.name, Errc::FileCorrupt);
    if (read == 0) break;
    lines += std::count(buffer.begin(), buffer.begin() + read, '\n');
    at += read;
  }
  return lines + 1;  // and the one that goes on at byte begin - 1
}

std::unique_ptr<FragmentReader> TextFiles::open(std::int64_t fragment, std::int64_t first_row, const ReadOptions& options) const {
  const auto& range = ranges_.at(static_cast<std::size_t>(fragment));
  check_header_of(range.file);
  auto split = split_options(range);
  split.max_records = std::max<std::int64_t>(1, options.block_rows);
  // Constant for files with quoted line ends, where it decides what is left of a record that is too long.
  if (split.quotes != SplitOptions::Quotes::Lines) split.buffer_bytes = std::clamp<std::int64_t>(options.block_bytes, 64 << 10, kRemoteBufferBytes);
  const auto lines = [self = shared_from_this(), range] { return self->lines_before(range); };
  return std::make_unique<TextReader>(splitter(range, split), format_, parser(options.columns), files_[range.file].name, fragment, first_row, format_.header && range.begin == 0, options.on_bad_row, lines);
}

std::int64_t TextFiles::count_rows(std::int64_t fragment) const {
  const auto& range = ranges_.at(static_cast<std::size_t>(fragment));
  check_header_of(range.file);
  const auto records = splitter(range, split_options(range));
  std::int64_t rows = format_.header && range.begin == 0 ? -1 : 0;
  for (RecordChunk chunk; records->next(chunk);) rows += static_cast<std::int64_t>(chunk.records.size());
  return std::max<std::int64_t>(rows, 0);
}

}  // namespace troupe::detail
