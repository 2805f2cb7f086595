#include <arrow/csv/writer.h>
#include <arrow/io/interfaces.h>
#include <arrow/ipc/writer.h>
#include <arrow/record_batch.h>
#include <arrow/util/compression.h>
#include <parquet/arrow/writer.h>
#include <parquet/exception.h>
#include <parquet/properties.h>

#include <troupe/dataset/sinks.hpp>

#include "../columns/arrow_errors.hpp"
#include "json_rows.hpp"
#include "output_files.hpp"

namespace troupe {

using Out = std::shared_ptr<arrow::io::OutputStream>;

namespace {

class ParquetWriter final : public detail::FormatWriter {
 public:
  ParquetWriter(const Out& out, std::string where, const arrow::Schema& schema, arrow::Compression::type compression, const ParquetWriteOptions& options) : where_(std::move(where)) {
    parquet::WriterProperties::Builder properties;
    properties.compression(compression);
    properties.enable_page_checksum();  // what a disk or a network bends is found when it is read
    properties.max_row_group_length(options.row_group_rows);
    if (!options.dictionary) properties.disable_dictionary();
    const auto arrow_properties = parquet::ArrowWriterProperties::Builder().store_schema()->build();
    writer_ = detail::value(parquet::arrow::FileWriter::Open(schema, arrow::default_memory_pool(), out, properties.build(), arrow_properties), where_, Errc::StorageUnavailable);
  }
  void write(const RecordBatchPtr& rows) override {
    guarded([&] { return writer_->WriteRecordBatch(*rows); });
  }
  void finish() override {
    guarded([&] { return writer_->Close(); });
  }

 private:
  template <class F>
  void guarded(F&& act) {
    try {
      detail::check(act(), where_, Errc::StorageUnavailable);
    } catch (const parquet::ParquetException& error) {
      throw Failure{Errc::StorageUnavailable, where_ + ": " + detail::short_text(error.what())};
    }
  }
  std::string where_;
  std::unique_ptr<parquet::arrow::FileWriter> writer_;
};

/// CSV and IPC: both are Arrow's RecordBatchWriter.
class BatchWriter final : public detail::FormatWriter {
 public:
  BatchWriter(std::shared_ptr<arrow::ipc::RecordBatchWriter> writer, std::string where) : writer_(std::move(writer)), where_(std::move(where)) {}
  void write(const RecordBatchPtr& rows) override { detail::check(writer_->WriteRecordBatch(*rows), where_, Errc::StorageUnavailable); }
  void finish() override { detail::check(writer_->Close(), where_, Errc::StorageUnavailable); }

 private:
  std::shared_ptr<arrow::ipc::RecordBatchWriter> writer_;
  std::string where_;
};

class JsonWriter final : public detail::FormatWriter {
 public:
  JsonWriter(Out out, std::string where) : out_(std::move(out)), where_(std::move(where)) {}
  void write(const RecordBatchPtr& rows) override {
    constexpr std::int64_t step = 1024;
    for (std::int64_t at = 0; at < rows->num_rows(); at += step) {
      text_.clear();
      detail::append_json_rows(*rows->Slice(at, step), text_);
      detail::check(out_->Write(text_), where_, Errc::StorageUnavailable);
    }
  }
  void finish() override {}

 private:
  Out out_;
  std::string where_;
  std::string text_;
};

arrow::Compression::type compression_named(const std::string& name) {
  if (name == "none") return arrow::Compression::UNCOMPRESSED;
  const auto type = arrow::util::Codec::GetCompressionType(name);
  if (!type.ok() || !arrow::util::Codec::IsAvailable(*type)) throw Failure{Errc::InvalidArgument, "there is no compression '" + name + "': none, snappy, gzip, zstd, lz4, brotli"};
  return *type;
}

}  // namespace

std::vector<std::string> write_parquet(BatchStream rows, const std::string& directory, const ParquetWriteOptions& options) {
  if (options.row_group_rows < 1) throw Failure{Errc::InvalidArgument, "row_group_rows must be at least 1"};
  const auto compression = compression_named(options.compression);
  const auto schema = rows.schema;
  return detail::write_files(std::move(rows), directory, options.files, ".parquet", [&](const Out& out, const std::string& where) { return std::make_unique<ParquetWriter>(out, where, *schema, compression, options); });
}

std::vector<std::string> write_parquet(BatchStream rows, const std::string& directory) {
  const ParquetWriteOptions usual;
  return write_parquet(std::move(rows), directory, usual);
}

std::vector<std::string> write_ipc(BatchStream rows, const std::string& directory, const WriteOptions& options) {
  const auto schema = rows.schema;
  return detail::write_files(std::move(rows), directory, options, ".arrow", [&](const Out& out, const std::string& where) {
    return std::make_unique<BatchWriter>(detail::value(arrow::ipc::MakeFileWriter(out, schema), where, Errc::StorageUnavailable), where);
  });
}

std::vector<std::string> write_csv(BatchStream rows, const std::string& directory, const CsvWriteOptions& options) {
  auto write = arrow::csv::WriteOptions::Defaults();
  write.delimiter = options.delimiter;
  write.include_header = options.header;
  const auto schema = rows.schema;
  return detail::write_files(std::move(rows), directory, options.files, options.delimiter == '\t' ? ".tsv" : ".csv", [&](const Out& out, const std::string& where) {
    return std::make_unique<BatchWriter>(detail::value(arrow::csv::MakeCSVWriter(out, schema, write), where, Errc::Unsupported), where);
  });
}

std::vector<std::string> write_json_lines(BatchStream rows, const std::string& directory, const WriteOptions& options) {
  detail::check_json_types(*rows.schema);
  return detail::write_files(std::move(rows), directory, options, ".jsonl", [](const Out& out, const std::string& where) { return std::make_unique<JsonWriter>(out, where); });
}

}  // namespace troupe
