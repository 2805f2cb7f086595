#include <arrow/array/builder_binary.h>
#include <arrow/buffer.h>
#include <arrow/record_batch.h>

#include "../columns/arrow_errors.hpp"
#include "../columns/types.hpp"
#include "text_files.hpp"

namespace troupe {

namespace {

class LineParser final : public detail::RecordParser {
 public:
  explicit LineParser(std::shared_ptr<arrow::Schema> schema) : schema_(std::move(schema)) {}

  arrow::Result<std::shared_ptr<arrow::RecordBatch>> parse(const detail::RecordChunk& chunk, std::size_t first, std::size_t last) override {
    arrow::StringBuilder builder;
    const auto* const data = chunk.bytes->data();
    ARROW_RETURN_NOT_OK(builder.Reserve(static_cast<std::int64_t>(last - first)));
    for (auto i = first; i < last; ++i) {
      ARROW_RETURN_NOT_OK(builder.Append(data + chunk.records[i].begin, static_cast<std::int32_t>(chunk.records[i].size)));
    }
    ARROW_ASSIGN_OR_RAISE(auto column, builder.Finish());
    return arrow::RecordBatch::Make(schema_, column->length(), {column});
  }

 private:
  std::shared_ptr<arrow::Schema> schema_;
};

detail::TextFormat format_of(const TextOptions& options) {
  detail::TextFormat format;
  format.name = "text";
  format.extensions = {".txt", ".text"};
  format.split.drop_empty = options.drop_empty_lines;
  format.carriage_returns = true;
  return format;
}

class TextSource final : public detail::TextFiles {
 public:
  TextSource(const Paths& paths, const TextOptions& options) : TextFiles(paths, options.files, options.lines, format_of(options)) { schema_ = arrow::schema({arrow::field("text", arrow::utf8())}); }

 protected:
  std::unique_ptr<detail::RecordParser> parser(const std::vector<std::string>& columns) const override {
    for (const auto& column : columns) (void)detail::column_index(*schema_, column, "text");
    return std::make_unique<LineParser>(schema_);
  }
};

}  // namespace

std::shared_ptr<const Source> text_source(const Paths& paths, TextOptions options) { return std::make_shared<TextSource>(paths, options); }

}  // namespace troupe
