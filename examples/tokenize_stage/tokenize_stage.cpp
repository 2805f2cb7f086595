#include <arrow/api.h>

#include <troupe/errors.hpp>
#include <troupe/tokenize_stage.hpp>

namespace troupe {
namespace {

[[noreturn]] void refuse(Errc code, const std::string& text) {
  throw Failure{code, "tokenize_stage: " + text};
}

template <class Array>
void collect(const Array& array, const std::string& column, std::vector<std::string_view>& out) {
  for (std::int64_t row = 0; row < array.length(); ++row) {
    if (array.IsNull(row))
      refuse(Errc::DataMalformed,
             "column '" + column + "' has no text in row " + std::to_string(row) + " of the batch");
    out.push_back(array.GetView(row));
  }
}

std::vector<std::string_view> texts_of(const arrow::RecordBatch& batch, const std::string& name) {
  const auto column = batch.GetColumnByName(name);
  if (!column)
    refuse(Errc::InvalidArgument,
           "there is no column '" + name + "'; there are: " + batch.schema()->ToString());
  std::vector<std::string_view> out;
  out.reserve(static_cast<std::size_t>(column->length()));
  switch (column->type_id()) {
    case arrow::Type::STRING:
      collect(static_cast<const arrow::StringArray&>(*column), name, out);
      break;
    case arrow::Type::LARGE_STRING:
      collect(static_cast<const arrow::LargeStringArray&>(*column), name, out);
      break;
    case arrow::Type::STRING_VIEW:
      collect(static_cast<const arrow::StringViewArray&>(*column), name, out);
      break;
    default:
      refuse(Errc::InvalidArgument,
             "column '" + name + "' holds " + column->type()->ToString() + ", not text");
  }
  return out;
}

/// Lists of numbers, one a row, in the batch's memory.
std::shared_ptr<arrow::Array> lists(std::vector<std::int64_t> values,
                                    const std::shared_ptr<arrow::Buffer>& offsets,
                                    std::int64_t rows) {
  const auto count = static_cast<std::int64_t>(values.size());
  const auto items =
      std::make_shared<arrow::Int64Array>(count, arrow::Buffer::FromVector(std::move(values)));
  return std::make_shared<arrow::ListArray>(arrow::list(arrow::int64()), rows, offsets, items);
}

std::shared_ptr<arrow::RecordBatch> tokenize(const Tokenizer& tokenizer,
                                             const TokenizeColumns& columns,
                                             const std::shared_ptr<arrow::RecordBatch>& batch) {
  const auto firsts = texts_of(*batch, columns.text);
  auto options = columns.encode;
  options.type_ids = columns.token_type_ids;
  auto tokens =
      columns.second_text.empty()
          ? tokenizer.encode_batch(firsts, options)
          : tokenizer.encode_batch(firsts, texts_of(*batch, columns.second_text), options);
  if (tokens.ids.size() > INT32_MAX)
    refuse(Errc::InvalidArgument, "a batch makes over 2 billion ids; make batches smaller");
  std::vector<std::int32_t> ends(tokens.offsets.begin(), tokens.offsets.end());
  const std::shared_ptr<arrow::Buffer> offsets = arrow::Buffer::FromVector(std::move(ends));
  arrow::FieldVector fields;
  arrow::ArrayVector arrays;
  for (int i = 0; i < batch->num_columns(); ++i) {
    const auto& name = batch->schema()->field(i)->name();
    const bool is_text =
        name == columns.text || (!columns.second_text.empty() && name == columns.second_text);
    if (is_text && !columns.keep_text) continue;
    fields.push_back(batch->schema()->field(i));
    arrays.push_back(batch->column(i));
  }
  const auto add = [&](const char* name, std::vector<std::int64_t> values) {
    for (const auto& field : fields) {
      if (field->name() == name)
        refuse(Errc::InvalidArgument, std::string("there is already a column '") + name + "'");
    }
    arrays.push_back(lists(std::move(values), offsets, batch->num_rows()));
    fields.push_back(arrow::field(name, arrays.back()->type(), false));
  };
  const auto count = tokens.ids.size();
  add("input_ids", std::move(tokens.ids));
  if (columns.attention_mask) add("attention_mask", std::vector<std::int64_t>(count, 1));
  if (columns.token_type_ids) add("token_type_ids", std::move(tokens.type_ids));
  return arrow::RecordBatch::Make(arrow::schema(fields, batch->schema()->metadata()),
                                  batch->num_rows(), arrays);
}

}  // namespace

BatchStage tokenize_stage(std::shared_ptr<const Tokenizer> tokenizer, TokenizeColumns columns) {
  if (!tokenizer) refuse(Errc::InvalidArgument, "there is no tokenizer");
  if (columns.text.empty()) refuse(Errc::InvalidArgument, "which column holds the text?");
  return [tokenizer = std::move(tokenizer),
          columns = std::move(columns)](const std::shared_ptr<arrow::RecordBatch>& batch) {
    return tokenize(*tokenizer, columns, batch);
  };
}

}  // namespace troupe
