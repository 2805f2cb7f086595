#include <arrow/array.h>
#include <arrow/io/interfaces.h>
#include <arrow/ipc/dictionary.h>
#include <arrow/ipc/message.h>
#include <arrow/ipc/options.h>
#include <arrow/ipc/reader.h>
#include <arrow/record_batch.h>
#include <arrow/type.h>

#include "../columns/arrow_errors.hpp"
#include "../columns/types.hpp"
#include "columnar_rows.hpp"
#include "files.hpp"
#include "in_parallel.hpp"
#include "ipc_layout.hpp"

namespace troupe {

namespace ipc = arrow::ipc;

namespace {

struct Place {
  std::size_t file = 0;
  int index = 0;  ///< among the file's record batches
  detail::IpcBatch batch;
};

/// One record batch: the format knows nothing smaller. Its buffers are checked before anybody follows an offset in them.
class BatchReader final : public detail::ColumnarReader {
 public:
  using Read = std::function<arrow::Result<std::shared_ptr<arrow::RecordBatch>>()>;
  BatchReader(std::string where, std::int64_t fragment, std::int64_t first_row, std::int64_t num_rows, std::shared_ptr<arrow::Schema> schema, const ReadOptions& options, Read read)
      : ColumnarReader(std::move(where), fragment, first_row, num_rows, std::move(schema), options), read_(std::move(read)) {}

 protected:
  std::shared_ptr<arrow::RecordBatch> read() override {
    if (!read_) return nullptr;
    const auto stored = detail::value(std::exchange(read_, nullptr)(), where_, Errc::FileCorrupt);
    if (const auto valid = stored->ValidateFull(); !valid.ok() && !only_strings(*stored)) detail::fail(valid, where_, Errc::FileCorrupt);
    arrow::ArrayVector columns;
    // A file says its schema twice; the one at its end is what the batch was read by.
    const auto found = detail::plain(*stored->schema());
    for (const auto& field : schema_->fields()) {
      const auto same = found->GetFieldByName(field->name());
      if (!same || !same->type()->Equals(*field->type())) throw Failure{Errc::FileCorrupt, where_ + ": its footer tells of other columns than its beginning"};
      columns.push_back(stored->GetColumnByName(field->name()));
    }
    return detail::value(detail::plain(arrow::RecordBatch::Make(schema_, stored->num_rows(), std::move(columns)), schema_), where_, Errc::FileCorrupt);
  }

 private:
  /// Whether nothing is wrong but strings that are no UTF-8, which are bad rows and not the end: the same buffers are fine as bytes.
  static bool only_strings(const arrow::RecordBatch& rows) {
    for (const auto& column : rows.columns()) {
      const auto id = column->type_id();
      if (id != arrow::Type::STRING && id != arrow::Type::LARGE_STRING) {
        if (!column->ValidateFull().ok()) return false;
        continue;
      }
      const auto bytes = column->View(id == arrow::Type::STRING ? arrow::binary() : arrow::large_binary());
      if (!bytes.ok() || !(*bytes)->ValidateFull().ok()) return false;
    }
    return true;
  }

  Read read_;
};

class IpcSource final : public Source {
 public:
  IpcSource(const Paths& paths, const FileOptions& options) : files_(paths, options, {".arrow", ".arrows", ".feather", ".ipc"}) {
    layouts_.resize(files_.size());
    std::vector<detail::IpcLayout> found(files_.size());
    detail::in_parallel(files_.size(), 8, [&](std::size_t i) { found[i] = detail::read_ipc_layout(*files_.open(files_[i]), files_[i].name); });
    for (std::size_t i = 0; i < files_.size(); ++i) add(i, std::move(found[i]));
  }

  const std::shared_ptr<arrow::Schema>& schema() const override { return schema_; }
  const std::vector<Fragment>& fragments() const override { return fragments_; }
  std::int64_t count_rows(std::int64_t fragment) const override { return places_.at(static_cast<std::size_t>(fragment)).batch.num_rows; }
  std::string fingerprint() const override { return files_.fingerprint("ipc"); }

  std::unique_ptr<FragmentReader> open(std::int64_t fragment, std::int64_t first_row, const ReadOptions& options) const override {
    const auto& place = places_.at(static_cast<std::size_t>(fragment));
    const auto& file = files_[place.file];
    const auto& where = fragments_[static_cast<std::size_t>(fragment)].path;
    auto input = files_.open(file);
    const auto now = schema_of(input, file.name, layouts_[place.file].file_format);
    if (!now->Equals(*layouts_[place.file].schema, false)) throw Failure{Errc::DataMalformed, file.name + " has changed since the data set was made: it has other columns"};
    auto schema = schema_;
    ipc::IpcReadOptions read = ipc::IpcReadOptions::Defaults();
    read.use_threads = false;
    if (!options.columns.empty()) {
      arrow::FieldVector fields;
      for (const auto& column : options.columns) {
        fields.push_back(schema_->field(detail::column_index(*schema_, column, "ipc")));
        read.included_fields.push_back(now->GetFieldIndex(column));
      }
      schema = arrow::schema(std::move(fields));
    }
    return std::make_unique<BatchReader>(where, fragment, first_row, place.batch.num_rows, schema, options, batch_of(place, std::move(input), now, read));
  }

 private:
  static std::shared_ptr<arrow::Schema> schema_of(const std::shared_ptr<arrow::io::RandomAccessFile>& input, const std::string& name, bool file_format) {
    const std::int64_t begin = file_format ? 8 : 0;
    const auto stream = detail::value(arrow::io::RandomAccessFile::GetStream(input, begin, input->GetSize().ValueOr(begin) - begin), name, Errc::FileCorrupt);
    ipc::DictionaryMemo memo;
    return detail::value(ipc::ReadSchema(stream.get(), &memo), name, Errc::FileCorrupt);
  }

  BatchReader::Read batch_of(const Place& place, std::shared_ptr<arrow::io::RandomAccessFile> input, const std::shared_ptr<arrow::Schema>& stored, const ipc::IpcReadOptions& read) const {
    if (layouts_[place.file].file_format) {
      return [input = std::move(input), read, index = place.index]() -> arrow::Result<std::shared_ptr<arrow::RecordBatch>> {
        ARROW_ASSIGN_OR_RAISE(const auto reader, ipc::RecordBatchFileReader::Open(input, read));
        if (index >= reader->num_record_batches()) return arrow::Status::Invalid("its footer knows only ", reader->num_record_batches(), " record batches");
        return reader->ReadRecordBatch(index);
      };
    }
    return [input = std::move(input), read, batch = place.batch, stored]() -> arrow::Result<std::shared_ptr<arrow::RecordBatch>> {
      ARROW_ASSIGN_OR_RAISE(const auto message, ipc::ReadMessage(batch.offset, batch.metadata_bytes, input.get()));
      const ipc::DictionaryMemo none;
      return ipc::ReadRecordBatch(*message, stored, &none, read);
    };
  }

  void add(std::size_t file, detail::IpcLayout layout) {
    const auto& name = files_[file].name;
    if (layout.dictionaries && !layout.file_format) throw Failure{Errc::Unsupported, name + " is an IPC stream with dictionary-encoded columns, which cannot be read from the middle; write it as an IPC file"};
    const auto found = detail::plain(*layout.schema);
    if (!schema_) {
      schema_ = found;
    } else if (const auto why = detail::difference(*schema_, *found); !why.empty()) {
      throw Failure{Errc::DataMalformed, name + " has other columns than " + files_[0].name + ": " + why};
    }
    for (std::size_t i = 0; i < layout.batches.size(); ++i) {
      const auto& batch = layout.batches[i];
      if (batch.num_rows == 0) continue;
      places_.push_back({file, static_cast<int>(i), batch});
      fragments_.push_back({name + ", record batch " + std::to_string(i), batch.num_rows, batch.body_bytes});
    }
    layouts_[file] = {layout.file_format, std::move(layout.schema)};
  }

  struct FileFacts {
    bool file_format = false;
    std::shared_ptr<arrow::Schema> schema;
  };
  detail::FileSet files_;
  std::vector<FileFacts> layouts_;
  std::shared_ptr<arrow::Schema> schema_;
  std::vector<Fragment> fragments_;
  std::vector<Place> places_;
};

}  // namespace

std::shared_ptr<const Source> ipc_source(const Paths& paths, FileOptions options) { return std::make_shared<IpcSource>(paths, options); }

}  // namespace troupe
