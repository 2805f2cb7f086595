#include <arrow/api.h>
#include <gtest/gtest.h>

#include <optional>
#include <troupe/tokenize_stage.hpp>

#include "golden.hpp"

namespace troupe {
namespace {

using test::failure_of;

std::shared_ptr<const Tokenizer> bert() {
  return load_tokenizer(test::golden("tokenizers") / "bert");
}

template <class Builder>
std::shared_ptr<arrow::Array> column(const std::vector<std::optional<std::string>>& texts) {
  Builder builder;
  for (const auto& text : texts)
    EXPECT_TRUE((text ? builder.Append(*text) : builder.AppendNull()).ok());
  return *builder.Finish();
}

std::shared_ptr<arrow::RecordBatch> batch(
    std::vector<std::pair<std::string, std::shared_ptr<arrow::Array>>> columns) {
  arrow::FieldVector fields;
  arrow::ArrayVector arrays;
  for (auto& [name, array] : columns) {
    fields.push_back(arrow::field(name, array->type()));
    arrays.push_back(array);
  }
  return arrow::RecordBatch::Make(arrow::schema(fields),
                                  arrays.empty() ? 0 : arrays.front()->length(), arrays);
}

std::vector<std::int64_t> row_of(const arrow::RecordBatch& rows, const std::string& name,
                                 std::int64_t row) {
  const auto& list = static_cast<const arrow::ListArray&>(*rows.GetColumnByName(name));
  const auto items = std::static_pointer_cast<arrow::Int64Array>(list.value_slice(row));
  return {items->raw_values(), items->raw_values() + items->length()};
}

TEST(TokenizeStage, ReplacesTextByLists) {
  const auto tokenizer = bert();
  const auto rows = batch({{"a", column<arrow::StringBuilder>({"the light", "God"})},
                           {"b", column<arrow::LargeStringBuilder>({"the day", ""})},
                           {"id", column<arrow::StringBuilder>({"x", "y"})}});
  const auto out = tokenize_stage(
      tokenizer,
      {.text = "a", .second_text = "b", .token_type_ids = true, .encode = {.max_length = 16}})(
      rows);
  ASSERT_TRUE(out->ValidateFull().ok());
  EXPECT_EQ(out->schema()->field_names(),
            (std::vector<std::string>{"id", "input_ids", "attention_mask", "token_type_ids"}));
  EXPECT_EQ(row_of(*out, "input_ids", 0), tokenizer->encode("the light", "the day"));
  EXPECT_EQ(row_of(*out, "input_ids", 1), tokenizer->encode("God", ""));
  EXPECT_EQ(row_of(*out, "attention_mask", 1),
            std::vector<std::int64_t>(tokenizer->encode("God", "").size(), 1));
  EXPECT_EQ(row_of(*out, "token_type_ids", 0).back(), 1);
}

TEST(TokenizeStage, TakesSlicesAndEmptyBatches) {
  const auto tokenizer = bert();
  const auto stage =
      tokenize_stage(tokenizer, {.text = "a", .attention_mask = false, .keep_text = true});
  const auto rows = batch({{"a", column<arrow::StringBuilder>({"one", "the day", "three"})}});
  const auto out = stage(rows->Slice(1, 1));
  EXPECT_EQ(out->num_rows(), 1);
  EXPECT_EQ(out->num_columns(), 2);
  EXPECT_EQ(row_of(*out, "input_ids", 0), tokenizer->encode("the day"));
  EXPECT_EQ(stage(rows->Slice(0, 0))->num_rows(), 0);
}

TEST(TokenizeStage, NamesColumnAndRow) {
  const auto stage = tokenize_stage(bert(), {.text = "a"});
  EXPECT_EQ(failure_of([&] {
              (void)stage(batch({{"a", column<arrow::StringBuilder>({"x", std::nullopt})}}));
            }),
            "DataMalformed tokenize_stage: column 'a' has no text in row 1 of the batch");
  EXPECT_NE(failure_of([&] {
              (void)stage(batch({{"b", column<arrow::StringBuilder>({"x"})}}));
            }).find("there is no column 'a'"),
            std::string::npos);
  EXPECT_NE(failure_of([&] {
              (void)stage(batch({{"a", *arrow::MakeArrayOfNull(arrow::int32(), 1)}}));
            }).find("holds int32, not text"),
            std::string::npos);
  EXPECT_NE(failure_of([&] {
              (void)stage(batch({{"a", column<arrow::StringBuilder>({"x"})},
                                 {"input_ids", column<arrow::StringBuilder>({"x"})}}));
            }).find("there is already a column 'input_ids'"),
            std::string::npos);
}

}  // namespace
}  // namespace troupe
