#include <troupe/dataset/sources.hpp>
#include <troupe/errors.hpp>
#include <troupe/fine_tune_pairs_streaming.hpp>
#include <troupe/mrpc.hpp>
#include <troupe/wordpiece.hpp>

#include <arrow/api.h>

#include <filesystem>
#include <memory>
#include <string>

namespace troupe {

namespace {

constexpr std::int64_t shuffled_rows = 4096;  // all of MRPC: a window is held in memory

/// The two names that the field gives each column.
std::string column_of(const arrow::Schema& schema, const std::filesystem::path& file, const char* microsoft, const char* glue) {
  for (const char* name : {microsoft, glue}) {
    if (schema.GetFieldIndex(name) >= 0) return name;
  }
  throw Failure{Errc::DataMalformed, file.string() + ": there is no column '" + microsoft + "' or '" + glue + "'"};
}

/// Appends one list.
void append(arrow::ListBuilder& lists, const std::vector<std::int64_t>& values) {
  auto done = lists.Append();  // before its values: it says where the list begins
  if (done.ok()) done = static_cast<arrow::Int64Builder*>(lists.value_builder())->AppendValues(values);
  if (!done.ok()) throw Failure{Errc::OutOfMemory, "tokenising: " + done.ToString()};
}

/// Pairs as BERT reads them: input_ids, token_type_ids (lists) and labels.
Dataset tokenized(const Config& config, const std::filesystem::path& file) {
  const auto source = csv_source(file.string(), CsvOptions::tsv());
  const auto& schema = *source->schema();
  const std::vector<std::string> names{column_of(schema, file, "Quality", "label"), column_of(schema, file, "#1 String", "sentence1"),
                                       column_of(schema, file, "#2 String", "sentence2")};
  const auto tokenizer = std::make_shared<const WordPiece>(WordPiece::from_pretrained(config.get<std::string>("model")));
  const auto max_length = static_cast<std::size_t>(config.get<std::int64_t>("max_length"));
  const auto lists = arrow::list(arrow::int64());
  const auto tokens = arrow::schema({arrow::field("input_ids", lists), arrow::field("token_type_ids", lists), arrow::field("labels", arrow::int64())});
  const auto tokenize = [=](const std::shared_ptr<arrow::RecordBatch>& rows) {
    const auto& first = dynamic_cast<const arrow::StringArray&>(*rows->GetColumnByName(names[1]));
    const auto& second = dynamic_cast<const arrow::StringArray&>(*rows->GetColumnByName(names[2]));
    arrow::ListBuilder ids{arrow::default_memory_pool(), std::make_shared<arrow::Int64Builder>()};
    arrow::ListBuilder types{arrow::default_memory_pool(), std::make_shared<arrow::Int64Builder>()};
    for (std::int64_t i = 0; i < rows->num_rows(); ++i) {
      const auto encoding = tokenizer->encode(first.GetView(i), second.GetView(i), max_length);
      append(ids, encoding.ids);
      append(types, encoding.type_ids);
    }
    return arrow::RecordBatch::Make(tokens, rows->num_rows(), {ids.Finish().ValueOrDie(), types.Finish().ValueOrDie(), rows->GetColumnByName(names[0])});
  };
  return Dataset{source}.select_columns(names).map_batches(tokenize, {.name = "tokenize", .batch_size = 256, .schema = tokens});
}

PairFiles files_of(const Config& config) {
  return find_pairs(config.get<std::string>("data"), config.get<std::string>("train_file"), config.get<std::string>("eval_file"));
}

}  // namespace

Dataset train_pairs(const Config& config) { return tokenized(config, files_of(config).train).shuffle_windows(shuffled_rows, config.get<std::uint64_t>("seed")); }
Dataset eval_pairs(const Config& config) { return tokenized(config, files_of(config).eval); }

}  // namespace troupe
