#include <arrow/json/from_string.h>
#include <arrow/type.h>
#include <sys/stat.h>

#include <troupe/dataset/sinks.hpp>

#include "dataset_files.hpp"

namespace troupe {
namespace {

using namespace troupe::testing;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::shared_ptr<arrow::Table> table() {
  const auto column = [](const std::shared_ptr<arrow::DataType>& type, const char* json) { return arrow::json::ArrayFromJSONString(type, json).ValueOrDie(); };
  return arrow::Table::Make(arrow::schema({arrow::field("id", arrow::int64()), arrow::field("text", arrow::utf8()), arrow::field("x", arrow::float64())}),
                            {column(arrow::int64(), "[1, 2, null, 4, 5]"), column(arrow::utf8(), R"(["a\t\"b\"", "ü\n", "", "d", "e"])"), column(arrow::float64(), "[0.1, 1e300, 3, null, -5]")});
}

std::vector<std::string> expected(std::int64_t begin = 0, std::int64_t end = 5) {
  std::vector<std::string> rows;
  const auto batch = table()->CombineChunksToBatch().ValueOrDie();
  for (auto i = begin; i < end; ++i) rows.push_back(row_text(*batch, i));
  return rows;
}

std::vector<std::string> names_in(const std::string& directory) {
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator{directory}) names.push_back(entry.path().filename());
  std::sort(names.begin(), names.end());
  return names;
}

TEST(Sinks, EachFormatReadsBackWhatWasWritten) {
  const Folder folder;
  ParquetWriteOptions parquet;
  parquet.files.rows_per_file = 2;
  parquet.row_group_rows = 1;
  EXPECT_THAT(write_parquet(stream_of(table()), folder / "p", parquet), ElementsAre(folder / "p/part-00000.parquet", folder / "p/part-00001.parquet", folder / "p/part-00002.parquet"));
  const auto source = parquet_source(folder / "p");
  EXPECT_EQ(source->fragments().size(), 5u);
  EXPECT_EQ(read_all(*source).rows, expected());
  (void)write_ipc(stream_of(table()), folder / "i");
  EXPECT_EQ(read_all(*ipc_source(folder / "i")).rows, expected());
  (void)write_json_lines(stream_of(table()), folder / "j");
  EXPECT_EQ(read_all(*json_lines_source(folder / "j")).rows, expected());
  (void)write_csv(stream_of(table()), folder / "c");
  CsvOptions csv;
  csv.newlines_in_values = true;
  EXPECT_EQ(read_all(*csv_source(folder / "c", csv)).rows, expected());
}

TEST(Sinks, JsonEscapesAndNests) {
  const Folder folder;
  const auto type = arrow::struct_({arrow::field("k", arrow::list(arrow::int32())), arrow::field("when", arrow::date32())});
  const auto nested = arrow::json::ArrayFromJSONString(type, R"([{"k": [1, null], "when": 0}, null])").ValueOrDie();
  const auto text = arrow::json::ArrayFromJSONString(arrow::utf8(), R"(["\u0001\\\"", "€"])").ValueOrDie();
  const auto made = write_json_lines(stream_of(arrow::Table::Make(arrow::schema({arrow::field("n", type), arrow::field("t", arrow::utf8())}), {nested, text})), folder.text());
  EXPECT_EQ(read_bytes(made[0]), "{\"n\":{\"k\":[1,null],\"when\":\"1970-01-01\"},\"t\":\"\\u0001\\\\\\\"\"}\n{\"n\":null,\"t\":\"€\"}\n");
  const auto bytes = arrow::json::ArrayFromJSONString(arrow::binary(), R"(["x"])").ValueOrDie();
  EXPECT_THAT(failure(Errc::Unsupported, [&] { (void)write_json_lines(stream_of(arrow::Table::Make(arrow::schema({arrow::field("b", arrow::binary())}), {bytes})), folder / "b"); }), HasSubstr("column 'b' is binary"));
}

TEST(Sinks, NoRowsAreAFileThatKnowsTheColumns) {
  const Folder folder;
  EXPECT_EQ(write_parquet(stream_of(table()->Slice(0, 0)), folder / "p").size(), 1u);
  const auto source = parquet_source(folder / "p");
  EXPECT_EQ(source->fragments().size(), 0u);
  EXPECT_EQ(source->schema()->num_fields(), 3);
}

TEST(Sinks, NothingIsReplacedAndNothingIsHalf) {
  const Folder folder;
  (void)write_parquet(stream_of(table()), folder / "p");
  const auto before = read_bytes(folder / "p/part-00000.parquet");
  EXPECT_THAT(failure(Errc::AlreadyExists, [&] { (void)write_parquet(stream_of(table()->Slice(0, 1)), folder / "p"); }), HasSubstr("p/part-00000.parquet is there already"));
  EXPECT_EQ(read_bytes(folder / "p/part-00000.parquet"), before);
  // A stream that fails in its second file leaves the first, whole, and no other.
  auto at = std::make_shared<int>(0);
  const BatchStream failing{table()->schema(), [at]() -> RecordBatchPtr {
                              if (++*at == 3) throw Failure{Errc::FileCorrupt, "torn"};
                              return table()->CombineChunksToBatch().ValueOrDie();
                            }};
  ParquetWriteOptions options;
  options.files.prefix = "rank1";
  options.files.rows_per_file = 6;
  const auto files = open_files();
  EXPECT_EQ(failure(Errc::FileCorrupt, [&] { (void)write_parquet(failing, folder / "p", options); }), "torn");
  EXPECT_THAT(names_in(folder / "p"), ElementsAre("part-00000.parquet", "rank1-00000.parquet"));
  EXPECT_EQ(open_files_falling_to(files), files);
  EXPECT_EQ(read_all(*parquet_source(folder / "p/rank1-*.parquet")).rows.size(), 6u);
}

TEST(Sinks, PlacesThatCannotBeWrittenAreNamed) {
  const Folder folder;
  folder.write("file", "x");
  EXPECT_THAT(failure(Errc::StorageUnavailable, [&] { (void)write_csv(stream_of(table()), folder / "file/sub"); }), HasSubstr("file/sub"));
  EXPECT_THAT(failure(Errc::StorageUnavailable, [&] { (void)write_parquet(stream_of(table()), "/dev/full"); }), HasSubstr("/dev/full"));
  ParquetWriteOptions options;
  options.compression = "zst";
  EXPECT_THAT(failure(Errc::InvalidArgument, [&] { (void)write_parquet(stream_of(table()), folder / "p", options); }), HasSubstr("no compression 'zst'"));
  options.compression = "none";
  options.files.prefix = ".x";
  EXPECT_THAT(failure(Errc::InvalidArgument, [&] { (void)write_parquet(stream_of(table()), folder / "p", options); }), HasSubstr("'.x'"));
}

}  // namespace
}  // namespace troupe
