#include <arrow/array/builder_binary.h>
#include <arrow/io/interfaces.h>
#include <arrow/record_batch.h>
#include <arrow/type.h>

#include <algorithm>

#include "../columns/arrow_errors.hpp"
#include "../columns/types.hpp"
#include "files.hpp"

namespace troupe {

namespace {

constexpr std::size_t kMaxFilesPerFragment = 256;

class FilesReader final : public FragmentReader {
 public:
  FilesReader(const detail::FileSet& files, std::shared_ptr<const void> keep, std::size_t first_file, std::size_t end, std::int64_t fragment, std::int64_t first_row, std::shared_ptr<arrow::Schema> schema, ReadOptions options, std::int64_t max_bytes)
      : files_(files), keep_(std::move(keep)), first_file_(first_file), end_(end), next_(std::min(end, first_file + static_cast<std::size_t>(std::max<std::int64_t>(first_row, 0)))), fragment_(fragment), schema_(std::move(schema)), options_(std::move(options)), max_bytes_(max_bytes) {}

  std::optional<Block> next() override {
    if (next_ == end_) return std::nullopt;
    arrow::StringBuilder paths;
    arrow::BinaryBuilder contents;
    Block block;
    block.fragment = fragment_;
    block.first_source_row = static_cast<std::int64_t>(next_ - first_file_);
    std::int64_t bytes = 0;
    while (next_ < end_ && block.num_source_rows < std::max<std::int64_t>(1, options_.block_rows)) {
      const auto& file = files_[next_];
      if (block.num_source_rows > 0 && bytes + file.size > options_.block_bytes) break;
      bytes += file.size;
      ++next_;
      ++block.num_source_rows;
      try {
        const auto content = read(file);
        detail::check(contents.Append(content->data(), static_cast<std::int32_t>(content->size())), file.name, Errc::OutOfMemory);
        detail::check(paths.Append(file.name), file.name, Errc::OutOfMemory);
      } catch (const Failure& failure) {
        if (!options_.on_bad_row || failure.code() == Errc::OutOfMemory) throw;
        options_.on_bad_row({file.name, failure.what(), 1});
      }
    }
    arrow::ArrayVector columns;
    const auto path_column = detail::value(paths.Finish(), "files", Errc::OutOfMemory);
    const auto bytes_column = detail::value(contents.Finish(), "files", Errc::OutOfMemory);
    for (const auto& field : schema_->fields()) columns.push_back(field->name() == "path" ? path_column : bytes_column);
    block.rows = arrow::RecordBatch::Make(schema_, path_column->length(), std::move(columns));
    return block;
  }

 private:
  std::shared_ptr<arrow::Buffer> read(const detail::DataFile& file) const {
    if (file.size > max_bytes_) throw Failure{Errc::DataMalformed, file.name + " has " + std::to_string(file.size) + " bytes; max_file_bytes is " + std::to_string(max_bytes_)};
    if (schema_->GetFieldIndex("bytes") < 0) return arrow::Buffer::FromString("");  // only the names are asked for
    const auto input = files_.open(file);
    auto content = detail::value(input->ReadAt(0, file.size), file.name, Errc::StorageUnavailable);
    if (content->size() != file.size) throw Failure{Errc::FileCorrupt, file.name + " was cut while it was read"};
    return content;
  }

  const detail::FileSet& files_;
  std::shared_ptr<const void> keep_;  ///< the source, which owns files_
  std::size_t first_file_;
  std::size_t end_;
  std::size_t next_;
  std::int64_t fragment_;
  std::shared_ptr<arrow::Schema> schema_;
  ReadOptions options_;
  std::int64_t max_bytes_;
};

class BinaryFilesSource final : public Source, public std::enable_shared_from_this<BinaryFilesSource> {
 public:
  BinaryFilesSource(const Paths& paths, const BinaryFilesOptions& options) : files_(paths, options.files, {""}), options_(options) {
    if (options.max_file_bytes < 1 || options.max_file_bytes > (std::int64_t{1} << 30)) throw Failure{Errc::InvalidArgument, "max_file_bytes must be from 1 to 1 GiB"};
    for (std::size_t begin = 0; begin < files_.size();) {
      auto end = begin;
      std::int64_t bytes = 0;
      while (end < files_.size() && end - begin < kMaxFilesPerFragment && (end == begin || bytes + files_[end].size <= options.fragment_bytes)) bytes += files_[end++].size;
      begins_.push_back(begin);
      const auto& name = files_[begin].name;
      fragments_.push_back({end - begin == 1 ? name : name + " and " + std::to_string(end - begin - 1) + " files after it", static_cast<std::int64_t>(end - begin), bytes});
      begin = end;
    }
    begins_.push_back(files_.size());
  }

  const std::shared_ptr<arrow::Schema>& schema() const override { return schema_; }
  const std::vector<Fragment>& fragments() const override { return fragments_; }
  std::int64_t count_rows(std::int64_t fragment) const override { return *fragments_.at(static_cast<std::size_t>(fragment)).num_rows; }
  std::string fingerprint() const override { return files_.fingerprint("files " + std::to_string(options_.fragment_bytes)); }

  std::unique_ptr<FragmentReader> open(std::int64_t fragment, std::int64_t first_row, const ReadOptions& options) const override {
    const auto at = static_cast<std::size_t>(fragment);
    if (at >= fragments_.size()) throw Failure{Errc::InvalidArgument, "there is no fragment " + std::to_string(fragment)};
    auto schema = schema_;
    if (!options.columns.empty()) {
      arrow::FieldVector fields;
      for (const auto& column : options.columns) fields.push_back(schema_->field(detail::column_index(*schema_, column, "binary files")));
      schema = arrow::schema(std::move(fields));
    }
    return std::make_unique<FilesReader>(files_, shared_from_this(), begins_[at], begins_[at + 1], fragment, first_row, std::move(schema), options, options_.max_file_bytes);
  }

 private:
  detail::FileSet files_;
  BinaryFilesOptions options_;
  std::shared_ptr<arrow::Schema> schema_ = arrow::schema({arrow::field("path", arrow::utf8()), arrow::field("bytes", arrow::binary())});
  std::vector<Fragment> fragments_;
  std::vector<std::size_t> begins_;  ///< first file of each fragment, and the number of files
};

}  // namespace

std::shared_ptr<const Source> binary_files_source(const Paths& paths, BinaryFilesOptions options) { return std::make_shared<BinaryFilesSource>(paths, options); }

}  // namespace troupe
