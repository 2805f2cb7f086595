#include <arrow/array.h>
#include <arrow/buffer.h>
#include <arrow/io/interfaces.h>
#include <arrow/record_batch.h>
#include <arrow/type.h>

#include <algorithm>

#include "../columns/arrow_errors.hpp"
#include "../columns/types.hpp"
#include "columnar_rows.hpp"
#include "files.hpp"
#include "in_parallel.hpp"
#include "npy_header.hpp"

namespace troupe {

namespace {

struct Place {
  std::size_t file = 0;
  std::int64_t begin = 0;  ///< byte of its first row
  std::int64_t num_rows = 0;
};

class ArrayReader final : public detail::ColumnarReader {
 public:
  ArrayReader(std::string where, std::int64_t fragment, std::int64_t first_row, const Place& place, std::shared_ptr<arrow::Schema> schema, const ReadOptions& options, std::shared_ptr<arrow::io::RandomAccessFile> input, std::shared_ptr<arrow::DataType> number, std::int64_t row_width)
      : ColumnarReader(std::move(where), fragment, first_row, place.num_rows, std::move(schema), options), input_(std::move(input)), number_(std::move(number)), row_width_(row_width), row_bytes_(row_width * number_->byte_width()), at_(place.begin), left_(place.num_rows) {}

 protected:
  std::int64_t skip(std::int64_t rows) override {
    at_ += rows * row_bytes_;
    left_ -= rows;
    return rows;
  }

  std::shared_ptr<arrow::RecordBatch> read() override {
    const auto rows = std::min({left_, std::max<std::int64_t>(1, options_.block_rows), std::max<std::int64_t>(1, options_.block_bytes / row_bytes_)});
    if (rows == 0) return nullptr;
    const auto bytes = detail::value(input_->ReadAt(at_, rows * row_bytes_), where_, Errc::StorageUnavailable);
    if (bytes->size() != rows * row_bytes_) throw Failure{Errc::FileCorrupt, where_ + ": the file was cut while it was read"};
    skip(rows);
    auto numbers = arrow::MakeArray(arrow::ArrayData::Make(number_, rows * row_width_, {nullptr, bytes}, 0));
    const auto& type = schema_->field(0)->type();
    if (type->id() == arrow::Type::FIXED_SIZE_LIST) numbers = std::make_shared<arrow::FixedSizeListArray>(type, rows, numbers);
    return arrow::RecordBatch::Make(schema_, rows, {numbers});
  }

 private:
  std::shared_ptr<arrow::io::RandomAccessFile> input_;
  std::shared_ptr<arrow::DataType> number_;
  std::int64_t row_width_;
  std::int64_t row_bytes_;
  std::int64_t at_;
  std::int64_t left_;
};

class NpySource final : public Source {
 public:
  NpySource(const Paths& paths, const NpyOptions& options) : files_(paths, options.files, {".npy"}), fragment_bytes_(std::max<std::int64_t>(1, options.fragment_bytes)) {
    std::vector<detail::NpyHeader> headers(files_.size());
    detail::in_parallel(files_.size(), 8, [&](std::size_t i) { headers[i] = header(files_[i], *files_.open(files_[i])); });
    for (std::size_t i = 0; i < files_.size(); ++i) add(i, headers[i], options.column);
  }

  const std::shared_ptr<arrow::Schema>& schema() const override { return schema_; }
  const std::vector<Fragment>& fragments() const override { return fragments_; }
  std::int64_t count_rows(std::int64_t fragment) const override { return places_.at(static_cast<std::size_t>(fragment)).num_rows; }
  std::string fingerprint() const override { return files_.fingerprint("npy " + std::to_string(fragment_bytes_) + " " + schema_->ToString()); }

  std::unique_ptr<FragmentReader> open(std::int64_t fragment, std::int64_t first_row, const ReadOptions& options) const override {
    const auto& place = places_.at(static_cast<std::size_t>(fragment));
    const auto& file = files_[place.file];
    for (const auto& column : options.columns) (void)detail::column_index(*schema_, column, "npy");
    auto input = files_.open(file);
    const auto now = header(file, *input);
    if (!now.type->Equals(*number_) || now.row_width != row_width_) throw Failure{Errc::DataMalformed, file.name + " has changed since the data set was made: it holds other rows"};
    return std::make_unique<ArrayReader>(fragments_[static_cast<std::size_t>(fragment)].path, fragment, first_row, place, schema_, options, std::move(input), number_, row_width_);
  }

 private:
  static detail::NpyHeader header(const detail::DataFile& file, arrow::io::RandomAccessFile& input) {
    const auto begin = detail::value(input.ReadAt(0, std::min(file.size, detail::kMaxNpyHeaderBytes)), file.name, Errc::StorageUnavailable);
    return detail::parse_npy_header({reinterpret_cast<const char*>(begin->data()), static_cast<std::size_t>(begin->size())}, file.size, file.name);
  }

  void add(std::size_t file, const detail::NpyHeader& header, const std::string& column) {
    const auto& name = files_[file].name;
    if (!schema_) {
      number_ = header.type;
      row_width_ = header.row_width;
      schema_ = arrow::schema({arrow::field(column, header.shape.size() == 1 ? number_ : arrow::fixed_size_list(number_, static_cast<std::int32_t>(row_width_)))});
    } else if (!header.type->Equals(*number_) || header.row_width != row_width_) {
      throw Failure{Errc::DataMalformed, name + " has other rows than " + files_[0].name + ": " + std::to_string(header.row_width) + " of " + header.type->ToString() + ", not " + std::to_string(row_width_) + " of " + number_->ToString()};
    }
    if (header.shape[0] == 0) return;
    const auto row_bytes = row_width_ * number_->byte_width();
    const auto step = std::max<std::int64_t>(1, fragment_bytes_ / row_bytes);
    for (std::int64_t begin = 0; begin < header.shape[0]; begin += step) {
      const auto rows = std::min(step, header.shape[0] - begin);
      places_.push_back({file, header.data_begin + begin * row_bytes, rows});
      fragments_.push_back({name + ", rows " + std::to_string(begin) + "-" + std::to_string(begin + rows), rows, rows * row_bytes});
    }
  }

  detail::FileSet files_;
  std::int64_t fragment_bytes_;
  std::shared_ptr<arrow::DataType> number_;
  std::int64_t row_width_ = 1;
  std::shared_ptr<arrow::Schema> schema_;
  std::vector<Fragment> fragments_;
  std::vector<Place> places_;
};

}  // namespace

std::shared_ptr<const Source> npy_source(const Paths& paths, NpyOptions options) { return std::make_shared<NpySource>(paths, options); }

}  // namespace troupe
