#include <arrow/json/from_string.h>
#include <arrow/scalar.h>
#include <arrow/type.h>

#include <troupe/dataset/columns.hpp>

#include <random>

#include "dataset_files.hpp"

namespace troupe {
namespace {

using namespace troupe::testing;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::shared_ptr<arrow::Array> column(const std::shared_ptr<arrow::DataType>& type, const std::string& json) { return arrow::json::ArrayFromJSONString(type, json).ValueOrDie(); }

std::shared_ptr<arrow::RecordBatch> batch() {
  const auto schema = arrow::schema({arrow::field("id", arrow::int64()), arrow::field("text", arrow::utf8()), arrow::field("x", arrow::float64())});
  return arrow::RecordBatch::Make(schema, 5, {column(arrow::int64(), "[3, 1, null, 2, 1]"), column(arrow::utf8(), R"(["c", "a", "n", null, "b"])"), column(arrow::float64(), "[1, 2, 3, 4, null]")});
}

std::vector<std::string> rows(const std::shared_ptr<arrow::RecordBatch>& some) {
  std::vector<std::string> all;
  for (std::int64_t i = 0; i < some->num_rows(); ++i) all.push_back(row_text(*some, i));
  return all;
}
std::vector<std::string> rows(BatchStream stream) {
  std::vector<std::string> all;
  while (const auto some = stream.next()) {
    EXPECT_TRUE(some->schema()->Equals(*stream.schema));
    const auto more = rows(some);
    all.insert(all.end(), more.begin(), more.end());
  }
  EXPECT_EQ(stream.next(), nullptr);
  return all;
}
std::vector<std::string> rows(const std::shared_ptr<arrow::Table>& table) { return rows(stream_of(table)); }

/// The batch in pieces.
BatchStream pieces(const std::shared_ptr<arrow::RecordBatch>& all, std::int64_t size) {
  auto at = std::make_shared<std::int64_t>(0);
  return {all->schema(), [=]() -> RecordBatchPtr {
            if (*at >= all->num_rows()) return nullptr;
            const auto begin = *at;
            *at += size;
            return all->Slice(begin, size);
          }};
}

TEST(Expression, FiltersAsInSqlWithNullNeitherTrueNorFalse) {
  const auto kept = [](const Expression& condition) { return rows(filter_step(batch()->schema(), condition).apply(batch())); };
  EXPECT_THAT(kept(col("id") > 1), ElementsAre("3|c|1", "2|null|4"));
  EXPECT_THAT(kept(!(col("id") > 1)), ElementsAre("1|a|2", "1|b|null"));
  EXPECT_THAT(kept(col("id").is_null() || col("text") == "c"), ElementsAre("3|c|1", "null|n|3"));
  EXPECT_THAT(kept(col("id") * 2.0 + col("x") == 4), ElementsAre("1|a|2"));
  EXPECT_THAT(kept(col("text").is_in({"a", "b"}) && col("x").is_not_null()), ElementsAre("1|a|2"));
  EXPECT_THAT(kept(call("utf8_length", {col("text")}) == 1 && col("id").cast("string") == "2"), ElementsAre());
  EXPECT_THAT(kept(true).size(), 5u);
  EXPECT_THAT(kept(false).size(), 0u);
}

TEST(Expression, MistakesAreNamedBeforeAnyRowIsRead) {
  const auto schema = batch()->schema();
  EXPECT_THAT(failure(Errc::InvalidArgument, [&] { (void)filter_step(schema, col("texd") == "a"); }), HasSubstr("there is no column 'texd'; did you mean 'text'?"));
  EXPECT_THAT(failure(Errc::InvalidArgument, [&] { (void)filter_step(schema, col("id") + 1); }), HasSubstr("is int64, not bool"));
  EXPECT_THAT(failure(Errc::InvalidArgument, [&] { (void)filter_step(schema, col("text") > 3); }), HasSubstr("filter((text > 3))"));
  EXPECT_THAT(failure(Errc::DataMalformed, [&] { (void)with_column_step(schema, "y", col("id") / 0).apply(batch()); }), HasSubstr("divide by zero"));
}

TEST(ColumnSteps, SelectDropRenameAndAdd) {
  const auto schema = batch()->schema();
  EXPECT_EQ(rows(select_step(schema, {"x", "id"}).apply(batch())).front(), "1|3");
  EXPECT_EQ(drop_step(schema, {"text"}).schema->ToString(), "id: int64\nx: double");
  EXPECT_EQ(rename_step(schema, {{"x", "score"}}).schema->ToString(), "id: int64\ntext: string\nscore: double");
  EXPECT_THAT(failure(Errc::InvalidArgument, [&] { (void)rename_step(schema, {{"x", "id"}}); }), HasSubstr("2 columns are called 'id'"));
  const auto added = with_column_step(schema, "big", if_else(col("id") >= 2, "yes", "no"));
  EXPECT_EQ(added.schema->field(3)->ToString(), "big: string");
  EXPECT_THAT(rows(added.apply(batch())), ElementsAre("3|c|1|yes", "1|a|2|no", "null|n|3|null", "2|null|4|yes", "1|b|null|no"));
  EXPECT_EQ(rows(with_column_step(schema, "id", 7).apply(batch())).front(), "7|c|1");
}

TEST(Sort, IsStableWithNullsLast) {
  EXPECT_THAT(rows(sort(pieces(batch(), 2), {{"id"}})), ElementsAre("1|a|2", "1|b|null", "2|null|4", "3|c|1", "null|n|3"));
  EXPECT_THAT(rows(sort(pieces(batch(), 2), {{"id", true}, {"x", true}})), ElementsAre("3|c|1", "2|null|4", "1|a|2", "1|b|null", "null|n|3"));
  EXPECT_THAT(rows(sort(pieces(batch()->Slice(0, 0), 2), {{"id"}})), ElementsAre());
  EXPECT_THAT(failure(Errc::InvalidArgument, [] { (void)sort(pieces(batch(), 2), {{"ix"}}); }), HasSubstr("there is no column 'ix'"));
}

TEST(Sort, RunsOnDiskMergeToTheSameOrder) {
  std::mt19937 draw{3};
  for (const int spread : {1, 5, 1'000'000}) {
    std::string keys = "[", texts = "[";
    for (int i = 0; i < 20'000; ++i) {
      keys += (i ? "," : "") + (draw() % 50 == 0 ? "null" : std::to_string(draw() % static_cast<unsigned>(spread)));
      texts += (i ? ",\"row " : "\"row ") + std::to_string(i) + "\"";
    }
    const auto all = arrow::RecordBatch::Make(arrow::schema({arrow::field("k", arrow::int64()), arrow::field("t", arrow::utf8())}), 20'000, {column(arrow::int64(), keys + "]"), column(arrow::utf8(), texts + "]")});
    const auto in_memory = rows(sort(pieces(all, 700), {{"k"}}));
    SortOptions options;
    options.memory_bytes = 100'000;  // about a dozen runs
    options.block_rows = 333;
    const auto files = open_files();
    {
      auto sorted = sort(pieces(all, 700), {{"k"}}, options);
      EXPECT_EQ(rows(sorted), in_memory);
      EXPECT_GT(open_files(), files);
    }
    EXPECT_EQ(open_files_falling_to(files), files);
  }
}

TEST(Sort, NoPlaceToSpillIsSaid) {
  SortOptions options;
  options.memory_bytes = 1;
  options.spill_directory = "/nowhere";
  EXPECT_THAT(failure(Errc::StorageUnavailable, [&] { (void)rows(sort(pieces(batch(), 2), {{"id"}}, options)); }), HasSubstr("/nowhere"));
}

TEST(GroupBy, AggregatesPerKeySortedByKey) {
  using Kind = Aggregate::Kind;
  const auto table = group_by(pieces(batch(), 2), {"id"}, {{Kind::Count, "", ""}, {Kind::Sum, "x", ""}, {Kind::Min, "text", "first"}, {Kind::CountDistinct, "text", ""}, {Kind::List, "text", "all"}, {Kind::Last, "text", "last"}});
  EXPECT_EQ(table->schema()->ToString(), "id: int64\ncount(): int64\nsum(x): double\nfirst: string\ncount_distinct(text): int64\nall: list<item: string>\nlast: string");
  EXPECT_THAT(rows(table), ElementsAre(R"(1|2|2|a|2|list<item: string>[a, b]|b)", R"(2|1|4|null|0|list<item: string>[null]|null)", R"(3|1|1|c|1|list<item: string>[c]|c)", R"(null|1|3|n|1|list<item: string>[n]|n)"));
}

TEST(GroupBy, WithoutKeysIsOneRow) {
  using Kind = Aggregate::Kind;
  EXPECT_EQ(count(pieces(batch(), 2)), 5);
  EXPECT_EQ(aggregate(pieces(batch(), 2), Kind::Mean, "x")->ToString(), "2.5");
  EXPECT_EQ(aggregate(pieces(batch(), 2), Kind::Max, "id")->ToString(), "3");
  EXPECT_EQ(aggregate(pieces(batch(), 2), Kind::Count, "text")->ToString(), "4");
  EXPECT_EQ(aggregate(pieces(batch(), 2), Kind::Count, "")->ToString(), "5");
  EXPECT_EQ(aggregate(pieces(batch()->Slice(0, 0), 2), Kind::Sum, "x")->ToString(), "null");
  EXPECT_THAT(rows(unique(pieces(batch(), 2), "id")), ElementsAre("1", "2", "3", "null"));
  EXPECT_THAT(failure(Errc::InvalidArgument, [] { (void)aggregate(pieces(batch(), 2), Kind::Sum, "text"); }), HasSubstr("group_by"));
  EXPECT_THAT(failure(Errc::InvalidArgument, [] { (void)group_by(pieces(batch(), 2), {"idd"}, {}); }), HasSubstr("did you mean 'id'?"));
}

TEST(GroupBy, WhatTheRowsThrowComesOut) {
  BatchStream broken{batch()->schema(), []() -> RecordBatchPtr { throw Failure{Errc::FileCorrupt, "a.parquet, row group 3: torn"}; }};
  EXPECT_EQ(failure(Errc::FileCorrupt, [&] { (void)group_by(broken, {"id"}, {}); }), "a.parquet, row group 3: torn");
}

TEST(Join, KeepsLeftsOrderAndRightsAmongMatches) {
  const auto right = arrow::Table::Make(arrow::schema({arrow::field("id", arrow::int64()), arrow::field("name", arrow::utf8())}), {column(arrow::int64(), "[1, 3, 1, null, 9]"), column(arrow::utf8(), R"(["one", "three", "uno", "nil", "nine"])")});
  const auto left = select_step(batch()->schema(), {"id", "text"}).apply(batch());
  EXPECT_THAT(rows(join(pieces(left, 2), right, {"id"})), ElementsAre("3|c|three", "1|a|one", "1|a|uno", "1|b|one", "1|b|uno"));
  EXPECT_THAT(rows(join(pieces(left, 2), right, {"id"}, JoinKind::LeftOuter)), ElementsAre("3|c|three", "1|a|one", "1|a|uno", "null|n|null", "2|null|null", "1|b|one", "1|b|uno"));
  EXPECT_THAT(rows(join(pieces(left, 2), right, {"id"}, JoinKind::LeftSemi)), ElementsAre("3|c", "1|a", "1|b"));
  EXPECT_THAT(rows(join(pieces(left, 2), right, {"id"}, JoinKind::LeftAnti)), ElementsAre("null|n", "2|null"));
  EXPECT_THAT(rows(join(pieces(left, 2), right->Slice(0, 0), {"id"})), ElementsAre());
  const auto other = right->RenameColumns({"id", "text"}).ValueOrDie();
  EXPECT_THAT(failure(Errc::InvalidArgument, [&] { (void)join(pieces(left, 2), other, {"id"}); }), HasSubstr("2 columns are called 'text'"));
  EXPECT_THAT(failure(Errc::InvalidArgument, [&] { (void)join(pieces(left, 2), right, {"name"}); }), HasSubstr("join, left"));
}

}  // namespace
}  // namespace troupe
