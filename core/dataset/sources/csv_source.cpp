#include <arrow/array.h>
#include <arrow/buffer.h>
#include <arrow/csv/converter.h>
#include <arrow/csv/parser.h>
#include <arrow/csv/reader.h>
#include <arrow/io/memory.h>
#include <arrow/record_batch.h>
#include <arrow/table.h>
#include <arrow/util/utf8.h>

#include <algorithm>
#include <set>

#include "../columns/arrow_errors.hpp"
#include "../columns/types.hpp"
#include "text_files.hpp"

namespace troupe {

namespace csv = arrow::csv;
using detail::RecordChunk;
using Quotes = detail::SplitOptions::Quotes;

namespace {

constexpr std::int64_t kHeadBytes = 1 << 20;

csv::ParseOptions parse_options(const CsvOptions& options) {
  auto parse = csv::ParseOptions::Defaults();
  parse.delimiter = options.delimiter;
  parse.quoting = options.quoting;
  parse.newlines_in_values = options.newlines_in_values;
  return parse;
}

csv::ConvertOptions convert_options(const CsvOptions& options) {
  auto convert = csv::ConvertOptions::Defaults();
  convert.null_values = options.null_values;
  convert.strings_can_be_null = options.strings_can_be_null;
  return convert;
}

class CsvParser final : public detail::RecordParser {
 public:
  /// @param columns indices into `schema`, as they come out.
  CsvParser(const CsvOptions& options, const arrow::Schema& schema, const std::vector<int>& columns, const std::set<std::string>& inferred)
      : parse_(parse_options(options)), convert_(convert_options(options)), num_columns_(schema.num_fields()), indices_(columns) {
    arrow::FieldVector fields;
    for (const int index : columns) {
      const auto& field = schema.field(index);
      fields.push_back(field);
      converters_.push_back(detail::value(csv::Converter::Make(field->type(), convert_), "column '" + field->name() + "'", Errc::Unsupported));
      hints_.push_back("column '" + field->name() + "' (" + field->type()->ToString() + (inferred.contains(field->name()) ? ", inferred; column_types can say otherwise): " : "): "));
    }
    schema_ = arrow::schema(std::move(fields));
  }

  arrow::Result<std::shared_ptr<arrow::RecordBatch>> parse(const RecordChunk& chunk, std::size_t first, std::size_t last) override {
    if (first == last) return arrow::RecordBatch::MakeEmpty(schema_);
    const auto rows = static_cast<int>(last - first);
    const auto text = detail::bytes_of(chunk.bytes->data(), chunk, first, last);
    csv::BlockParser parser{arrow::default_memory_pool(), parse_, num_columns_, -1, rows + 1};
    std::uint32_t parsed = 0;
    ARROW_RETURN_NOT_OK(without_prefix(parser.ParseFinal(text, &parsed)));
    if (parser.num_rows() != rows || parsed != text.size()) return arrow::Status::Invalid("it does not end where its line ends");
    arrow::ArrayVector columns;
    for (std::size_t i = 0; i < indices_.size(); ++i) {
      auto column = converters_[i]->Convert(parser, indices_[i]);
      if (!column.ok()) return arrow::Status::Invalid(hints_[i], column.status().message());
      columns.push_back(std::move(column).ValueUnsafe());
    }
    return arrow::RecordBatch::Make(schema_, rows, std::move(columns));
  }

 private:
  static arrow::Status without_prefix(const arrow::Status& status) {
    constexpr std::string_view prefix = "CSV parse error: ";
    return status.ok() || !status.message().starts_with(prefix) ? status : arrow::Status::Invalid(status.message().substr(prefix.size()));
  }

  csv::ParseOptions parse_;
  csv::ConvertOptions convert_;  // converters refer to it
  int num_columns_;
  std::vector<int> indices_;
  std::vector<std::shared_ptr<csv::Converter>> converters_;
  std::vector<std::string> hints_;
  std::shared_ptr<arrow::Schema> schema_;
};

detail::TextFormat format_of(const CsvOptions& options) {
  detail::TextFormat format;
  format.name = "csv";
  format.name += ' ';
  format.name += options.delimiter;
  format.name += options.quoting ? (options.newlines_in_values ? " quoted lines" : " quoted") : "";
  format.extensions = {".csv", ".tsv", ".txt"};
  format.split.quotes = !options.quoting ? Quotes::None : options.newlines_in_values ? Quotes::Lines : Quotes::OneLine;
  format.split.delimiter = options.delimiter;
  format.header = options.header;
  format.carriage_returns = options.quoting && options.newlines_in_values;
  // A column of bytes may hold any; the others are checked value by value then.
  format.utf8 = std::none_of(options.column_types.begin(), options.column_types.end(), [](const auto& type) { return type.second.ends_with("binary"); });
  return format;
}

class CsvSource final : public detail::TextFiles {
 public:
  CsvSource(const Paths& paths, CsvOptions options) : TextFiles(paths, options.files, options.lines, format_of(options)), options_(std::move(options)) {
    if (options_.delimiter == '\n' || options_.delimiter == '\r' || options_.delimiter == '"' || options_.delimiter == '\0') throw Failure{Errc::InvalidArgument, "csv: this delimiter cannot be"};
    if (options_.newlines_in_values && !options_.quoting) throw Failure{Errc::InvalidArgument, "csv: newlines_in_values needs quoting"};
    if (options_.header && !options_.column_names.empty()) throw Failure{Errc::InvalidArgument, "csv: column_names are for files without a header; set header = false, or rename columns"};
    const auto beginning = head(kHeadBytes);
    names_ = names_of(beginning);
    make_schema(beginning);
  }

 protected:
  std::unique_ptr<detail::RecordParser> parser(const std::vector<std::string>& columns) const override {
    std::vector<int> indices;
    for (const auto& column : columns) indices.push_back(detail::column_index(*schema_, column, "csv"));
    if (columns.empty()) {
      for (int i = 0; i < schema_->num_fields(); ++i) indices.push_back(i);
    }
    return std::make_unique<CsvParser>(options_, *schema_, indices, inferred_);
  }

  void check_header(const std::string& header, const detail::DataFile& file) const override {
    const auto names = split(header, file.name + ", line 1");
    if (names == names_) return;
    std::string why = "it names " + std::to_string(names.size()) + " columns, not " + std::to_string(names_.size());
    for (std::size_t i = 0; i < std::min(names.size(), names_.size()); ++i) {
      if (names[i] == names_[i]) continue;
      why = "column " + std::to_string(i + 1) + " is '" + detail::short_text(names[i]) + "', not '" + names_[i] + "'";
      break;
    }
    throw Failure{Errc::DataMalformed, file.name + ", line 1: the header differs from that of " + files_[0].name + ": " + why};
  }

 private:
  std::vector<std::string> split(const std::string& line, const std::string& where) const {
    csv::BlockParser parser{arrow::default_memory_pool(), parse_options(options_), -1, -1, 2};
    std::uint32_t parsed = 0;
    detail::check(parser.ParseFinal(line, &parsed), where, Errc::DataMalformed);
    std::vector<std::string> values;
    detail::check(parser.VisitLastRow([&](const std::uint8_t* data, std::uint32_t size, bool, bool) {
      values.emplace_back(reinterpret_cast<const char*>(data), size);
      return arrow::Status::OK();
    }), where, Errc::DataMalformed);
    return values;
  }

  std::vector<std::string> names_of(const Head& beginning) const {
    if (!options_.column_names.empty()) return options_.column_names;
    if (!beginning.file) throw Failure{Errc::DataMalformed, files_[0].name + (files_.size() > 1 ? " and the other files are" : " is") + " empty: nothing says which columns there are"};
    const auto& first = beginning.chunk.records.front();
    const auto where = beginning.file->name + ", line " + std::to_string(first.line + 1);
    if (const auto why = detail::problem_of(format_, beginning.chunk, 0, 1); !why.empty()) throw Failure{Errc::DataMalformed, where + ": " + why};
    auto names = split(std::string{detail::bytes_of(beginning.chunk.bytes->data(), beginning.chunk, 0, 1)}, where);
    if (!options_.header) {
      for (std::size_t i = 0; i < names.size(); ++i) names[i] = "f" + std::to_string(i);
    }
    std::set<std::string> seen;
    for (const auto& name : names) {
      if (!seen.insert(name).second) throw Failure{Errc::DataMalformed, where + ": two columns are called '" + detail::short_text(name) + "'"};
    }
    return names;
  }

  /// Rows of the beginning that can be rows, as one text.
  std::string good_rows(const Head& beginning) const {
    std::string text;
    if (!beginning.file) return text;
    for (std::size_t i = format_.header ? 1 : 0; i < beginning.chunk.records.size(); ++i) {
      if (!detail::problem_of(format_, beginning.chunk, i, i + 1).empty()) continue;
      text += detail::bytes_of(beginning.chunk.bytes->data(), beginning.chunk, i, i + 1);
      text += '\n';
    }
    return text;
  }

  void make_schema(const Head& beginning) {
    auto convert = convert_options(options_);
    for (const auto& [column, type] : options_.column_types) {
      if (std::find(names_.begin(), names_.end(), column) == names_.end()) (void)detail::column_index(*named(), column, "csv, column_types");
      convert.column_types[column] = detail::type_named(type);
    }
    auto read = csv::ReadOptions::Defaults();
    read.use_threads = false;
    read.block_size = 4 * kHeadBytes;
    read.column_names = names_;
    auto parse = parse_options(options_);
    parse.invalid_row_handler = [](const csv::InvalidRow&) { return csv::InvalidRowResult::Skip; };
    const auto text = good_rows(beginning);
    std::shared_ptr<arrow::Schema> found;
    if (!text.empty()) {
      // Values that do not fit a type that was asked for are no concern here: they are bad rows later.
      auto infer = convert;
      for (auto& [column, type] : infer.column_types) type = arrow::binary();
      auto reader = detail::value(csv::TableReader::Make(arrow::io::default_io_context(), std::make_shared<arrow::io::BufferReader>(arrow::Buffer::FromString(text)), read, parse, infer), beginning.file->name, Errc::DataMalformed);
      found = detail::value(reader->Read(), beginning.file->name, Errc::DataMalformed)->schema();
    }
    arrow::FieldVector fields;
    for (std::size_t i = 0; i < names_.size(); ++i) {
      const auto given = convert.column_types.find(names_[i]);
      auto type = given != convert.column_types.end() ? given->second : found ? found->field(static_cast<int>(i))->type() : arrow::utf8();
      if (type->id() == arrow::Type::NA) type = arrow::utf8();
      if (given == convert.column_types.end()) inferred_.insert(names_[i]);
      fields.push_back(arrow::field(names_[i], std::move(type)));
    }
    schema_ = arrow::schema(std::move(fields));
  }

  std::shared_ptr<arrow::Schema> named() const {
    arrow::FieldVector fields;
    for (const auto& name : names_) fields.push_back(arrow::field(name, arrow::utf8()));
    return arrow::schema(std::move(fields));
  }

  CsvOptions options_;
  std::vector<std::string> names_;
  std::set<std::string> inferred_;
};

}  // namespace

std::shared_ptr<const Source> csv_source(const Paths& paths, CsvOptions options) { return std::make_shared<CsvSource>(paths, std::move(options)); }

}  // namespace troupe
