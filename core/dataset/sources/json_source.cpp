#include <arrow/buffer.h>
#include <arrow/json/reader.h>
#include <arrow/record_batch.h>
#include <arrow/type.h>

#include <algorithm>
#include <set>

#include "../columns/arrow_errors.hpp"
#include "../columns/types.hpp"
#include "text_files.hpp"

namespace troupe {

using detail::RecordChunk;

namespace {

constexpr std::int64_t kHeadBytes = 1 << 20;
constexpr int kMaxDepth = 64;  ///< of what a schema is inferred from: Arrow's inference takes time beyond all bounds for thousands

/// JSON knows no dates: what looks like one is a string. Nor does null tell a type.
std::shared_ptr<arrow::DataType> without_guesses(const std::shared_ptr<arrow::DataType>& type) {
  switch (type->id()) {
    case arrow::Type::NA:
    case arrow::Type::TIMESTAMP: return arrow::utf8();
    case arrow::Type::LIST: return arrow::list(without_guesses(static_cast<const arrow::ListType&>(*type).value_type()));
    case arrow::Type::STRUCT: {
      arrow::FieldVector fields;
      for (const auto& field : type->fields()) fields.push_back(arrow::field(field->name(), without_guesses(field->type())));
      return arrow::struct_(std::move(fields));
    }
    default: return type;
  }
}

int depth_of(std::string_view json) {
  int depth = 0;
  int deepest = 0;
  bool in_string = false;
  for (std::size_t i = 0; i < json.size(); ++i) {
    const char c = json[i];
    if (in_string) {
      if (c == '\\') ++i;
      if (c == '"') in_string = false;
    } else if (c == '"') {
      in_string = true;
    } else if (c == '{' || c == '[') {
      deepest = std::max(deepest, ++depth);
    } else if (c == '}' || c == ']') {
      --depth;
    }
  }
  return deepest;
}

std::string_view trimmed(std::string_view text) {
  const auto first = text.find_first_not_of(" \t\r\n");
  if (first == std::string_view::npos) return {};
  return text.substr(first, text.find_last_not_of(" \t\r\n") - first + 1);
}

class JsonParser final : public detail::RecordParser {
 public:
  JsonParser(std::shared_ptr<arrow::Schema> schema, std::set<std::string> inferred) : schema_(std::move(schema)), inferred_(std::move(inferred)) {
    options_.explicit_schema = schema_;
    options_.unexpected_field_behavior = arrow::json::UnexpectedFieldBehavior::Ignore;
  }

  arrow::Result<std::shared_ptr<arrow::RecordBatch>> parse(const RecordChunk& chunk, std::size_t first, std::size_t last) override {
    if (first == last) return arrow::RecordBatch::MakeEmpty(schema_);
    // Each line begins and ends an object; then as many objects as lines mean one a line, and no object spans two.
    for (auto i = first; i < last; ++i) {
      const auto line = trimmed(detail::bytes_of(chunk.bytes->data(), chunk, i, i + 1));
      if (!line.starts_with('{')) return arrow::Status::Invalid("it is no JSON object");
      if (!line.ends_with('}')) return arrow::Status::Invalid("its JSON object does not end");
    }
    const auto text = detail::bytes_of(chunk.bytes->data(), chunk, first, last);
    const auto slice = arrow::SliceBuffer(chunk.bytes, reinterpret_cast<const std::uint8_t*>(text.data()) - chunk.bytes->data(), static_cast<std::int64_t>(text.size()));
    auto parsed = arrow::json::ParseOne(options_, slice);
    if (!parsed.ok()) return arrow::Status::Invalid(clear(parsed.status().message()));
    if ((*parsed)->num_rows() != static_cast<std::int64_t>(last - first)) return arrow::Status::Invalid("it holds more than one JSON object");
    return parsed;
  }

 private:
  /// Arrow's text without its count of rows in the buffer, and what to do where a type was only inferred.
  std::string clear(std::string text) const {
    if (const auto at = text.rfind(" in row "); at != std::string::npos) text.resize(at);
    if (const auto prefix = std::string{"JSON parse error: "}; text.starts_with(prefix)) text.erase(0, prefix.size());
    const bool type = text.find("changed from") != std::string::npos || text.find("couldn't parse") != std::string::npos;
    if (type && !inferred_.empty()) text += " (types not in column_types are inferred)";
    return text;
  }

  std::shared_ptr<arrow::Schema> schema_;
  std::set<std::string> inferred_;
  arrow::json::ParseOptions options_ = arrow::json::ParseOptions::Defaults();
};

detail::TextFormat json_format() {
  detail::TextFormat format;
  format.name = "json_lines";
  format.extensions = {".jsonl", ".ndjson", ".json"};
  format.split.drop_blank = true;
  format.carriage_returns = true;  // white space; in strings they are an error of Arrow's
  return format;
}

class JsonLinesSource final : public detail::TextFiles {
 public:
  JsonLinesSource(const Paths& paths, const JsonLinesOptions& options) : TextFiles(paths, options.files, options.lines, json_format()) {
    const auto found = infer();
    arrow::FieldVector fields;
    for (const auto& [column, type] : options.column_types) {
      if (!found || found->GetFieldByName(column) == nullptr) fields.push_back(arrow::field(column, detail::type_named(type)));
    }
    for (int i = 0; found && i < found->num_fields(); ++i) {
      const auto& field = found->field(i);
      const auto given = options.column_types.find(field->name());
      if (given == options.column_types.end()) inferred_.insert(field->name());
      fields.insert(fields.begin() + i, arrow::field(field->name(), given != options.column_types.end() ? detail::type_named(given->second) : without_guesses(field->type())));
    }
    if (fields.empty()) throw Failure{Errc::DataMalformed, files_[0].name + ": no line of the beginning tells which columns there are; set column_types"};
    schema_ = arrow::schema(std::move(fields));
  }

 protected:
  std::unique_ptr<detail::RecordParser> parser(const std::vector<std::string>& columns) const override {
    auto schema = schema_;
    if (!columns.empty()) {
      arrow::FieldVector fields;
      for (const auto& column : columns) fields.push_back(schema_->field(detail::column_index(*schema_, column, "json_lines")));
      schema = arrow::schema(std::move(fields));
    }
    return std::make_unique<JsonParser>(std::move(schema), inferred_);
  }

 private:
  /// Of the lines of the beginning that are objects by themselves.
  std::shared_ptr<arrow::Schema> infer() const {
    const auto beginning = head(kHeadBytes);
    if (!beginning.file) return nullptr;
    std::vector<std::string_view> lines;
    for (std::size_t i = 0; i < beginning.chunk.records.size(); ++i) {
      if (!detail::problem_of(format_, beginning.chunk, i, i + 1).empty()) continue;
      const auto line = trimmed(detail::bytes_of(beginning.chunk.bytes->data(), beginning.chunk, i, i + 1));
      if (line.starts_with('{') && line.ends_with('}') && depth_of(line) <= kMaxDepth) lines.push_back(line);
    }
    return of_lines(lines, 0, lines.size());
  }

  /// The schema of lines [first, last). Where they do not go together, or one is broken: of the halves.
  static std::shared_ptr<arrow::Schema> of_lines(const std::vector<std::string_view>& lines, std::size_t first, std::size_t last) {
    if (first == last) return nullptr;
    std::string text;
    for (auto i = first; i < last; ++i) (text += lines[i]) += '\n';
    const auto parsed = arrow::json::ParseOne(arrow::json::ParseOptions::Defaults(), arrow::Buffer::FromString(text));
    if (parsed.ok()) return (*parsed)->schema();
    if (last - first == 1) return nullptr;
    const auto middle = first + (last - first) / 2;
    return both(of_lines(lines, first, middle), of_lines(lines, middle, last));
  }

  /// All columns; where types differ, the first one, but any before null and double before int64.
  static std::shared_ptr<arrow::Schema> both(const std::shared_ptr<arrow::Schema>& a, const std::shared_ptr<arrow::Schema>& b) {
    if (!a || !b) return a ? a : b;
    auto fields = a->fields();
    for (const auto& field : b->fields()) {
      const int at = a->GetFieldIndex(field->name());
      if (at < 0) {
        fields.push_back(field);
        continue;
      }
      const auto had = a->field(at)->type()->id();
      if (had == arrow::Type::NA || (had == arrow::Type::INT64 && field->type()->id() == arrow::Type::DOUBLE)) fields[static_cast<std::size_t>(at)] = field;
    }
    return arrow::schema(std::move(fields));
  }

  std::set<std::string> inferred_;
};

}  // namespace

std::shared_ptr<const Source> json_lines_source(const Paths& paths, JsonLinesOptions options) { return std::make_shared<JsonLinesSource>(paths, options); }

}  // namespace troupe
