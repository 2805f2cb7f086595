#include <arrow/array/builder_binary.h>
#include <arrow/array/builder_primitive.h>
#include <arrow/array/builder_dict.h>
#include <arrow/io/file.h>
#include <arrow/ipc/writer.h>
#include <arrow/type.h>
#include <parquet/arrow/writer.h>
#include <parquet/properties.h>

#include "dataset_files.hpp"

namespace troupe {
namespace {

using namespace troupe::testing;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

/// Rows [begin, end): id, text (every 5th null), score.
std::shared_ptr<arrow::Table> table_of(std::int64_t begin, std::int64_t end) {
  arrow::Int64Builder ids;
  arrow::StringBuilder texts;
  arrow::DoubleBuilder scores;
  for (auto i = begin; i < end; ++i) {
    EXPECT_TRUE(ids.Append(i).ok());
    EXPECT_TRUE((i % 5 == 4 ? texts.AppendNull() : texts.Append("text " + std::to_string(i))).ok());
    EXPECT_TRUE(scores.Append(static_cast<double>(i) / 4).ok());
  }
  const auto schema = arrow::schema({arrow::field("id", arrow::int64()), arrow::field("text", arrow::utf8()), arrow::field("score", arrow::float64())});
  return arrow::Table::Make(schema, {ids.Finish().ValueOrDie(), texts.Finish().ValueOrDie(), scores.Finish().ValueOrDie()});
}

std::vector<std::string> rows_of(std::int64_t begin, std::int64_t end) {
  std::vector<std::string> rows;
  const auto table = table_of(begin, end)->CombineChunksToBatch().ValueOrDie();
  for (std::int64_t i = 0; i < table->num_rows(); ++i) rows.push_back(row_text(*table, i));
  return rows;
}

std::string write_parquet_file(const Folder& folder, const std::string& name, const std::shared_ptr<arrow::Table>& table, std::int64_t row_group_rows, bool checksums = true) {
  fs::create_directories(fs::path{folder / name}.parent_path());
  const auto out = arrow::io::FileOutputStream::Open(folder / name).ValueOrDie();
  parquet::WriterProperties::Builder properties;
  properties.compression(arrow::Compression::ZSTD);
  if (checksums) properties.enable_page_checksum();
  EXPECT_TRUE(parquet::arrow::WriteTable(*table, arrow::default_memory_pool(), out, row_group_rows, properties.build(), parquet::ArrowWriterProperties::Builder().store_schema()->build()).ok());
  EXPECT_TRUE(out->Close().ok());
  return folder / name;
}

std::string write_ipc_file(const Folder& folder, const std::string& name, const std::shared_ptr<arrow::Table>& table, std::int64_t batch_rows, bool stream = false) {
  const auto out = arrow::io::FileOutputStream::Open(folder / name).ValueOrDie();
  const auto writer = (stream ? arrow::ipc::MakeStreamWriter(out, table->schema()) : arrow::ipc::MakeFileWriter(out, table->schema())).ValueOrDie();
  EXPECT_TRUE(writer->WriteTable(*table, batch_rows).ok());
  EXPECT_TRUE(writer->Close().ok());
  EXPECT_TRUE(out->Close().ok());
  return folder / name;
}

void flip(const std::string& path, std::size_t at) {
  auto bytes = read_bytes(path);
  bytes.at(at) = static_cast<char>(bytes.at(at) ^ 0x55);
  std::ofstream{path, std::ios::binary} << bytes;
}

TEST(ParquetSource, RowGroupsAreFragmentsAndPositionsHold) {
  const Folder folder;
  write_parquet_file(folder, "set/b.parquet", table_of(20, 33), 5);
  write_parquet_file(folder, "set/a.parquet", table_of(0, 20), 7);
  folder.write("set/_SUCCESS", "");
  folder.write("set/.hidden.parquet", "x");
  const auto source = parquet_source(folder / "set");
  ASSERT_EQ(source->fragments().size(), 6u);
  EXPECT_THAT(source->fragments()[2].path, HasSubstr("a.parquet, row group 2"));
  EXPECT_EQ(source->fragments()[2].num_rows, 6);
  EXPECT_GT(source->fragments()[2].num_bytes, 0);
  EXPECT_EQ(read_all(*source).rows, rows_of(0, 33));
  expect_positions_hold(*source);
}

TEST(ParquetSource, ReadsOnlyTheColumnsAskedInTheirOrder) {
  const Folder folder;
  const auto source = parquet_source(write_parquet_file(folder, "a.parquet", table_of(0, 3), 7));
  auto options = small_blocks();
  options.columns = {"score", "id"};
  EXPECT_THAT(read_all(*source, options).rows, ElementsAre("0|0", "0.25|1", "0.5|2"));
  options.columns = {"scor"};
  EXPECT_THAT(failure(Errc::InvalidArgument, [&] { (void)source->open(0, 0, options); }), HasSubstr("did you mean 'score'?"));
}

TEST(ParquetSource, BlocksAreCutByBytes) {
  const Folder folder;
  const auto source = parquet_source(write_parquet_file(folder, "a.parquet", table_of(0, 1000), 1000));
  ReadOptions options;
  options.block_bytes = 200;
  const auto reading = read(*source, 0, 0, options);
  EXPECT_GT(reading.blocks.size(), 20u);
  EXPECT_EQ(reading.rows, rows_of(0, 1000));
}

TEST(ParquetSource, LeavesOutRowGroupsThatCannotMatch) {
  const Folder folder;
  write_parquet_file(folder, "a.parquet", table_of(0, 40), 10);
  ParquetOptions options;
  options.filter = col("id") >= 25 && col("text") != "zzz";
  const auto source = parquet_source(folder / "a.parquet", options);
  EXPECT_EQ(read_all(*source).rows, rows_of(20, 40));
  EXPECT_NE(source->fingerprint(), parquet_source(folder / "a.parquet")->fingerprint());
  options.filter = col("idd") > 3;
  EXPECT_THAT(failure(Errc::InvalidArgument, [&] { (void)parquet_source(folder / "a.parquet", options); }), HasSubstr("did you mean 'id'?"));
}

TEST(ParquetSource, FilesMustHaveOneSchema) {
  const Folder folder;
  const auto table = table_of(0, 3);
  write_parquet_file(folder, "a.parquet", table, 5);
  write_parquet_file(folder, "b.parquet", table->SelectColumns({2, 0, 1}).ValueOrDie(), 5);  // another order is fine
  EXPECT_THAT(read_all(*parquet_source(folder.text())).rows.size(), 6u);
  write_parquet_file(folder, "c.parquet", table->SelectColumns({0, 1}).ValueOrDie(), 5);
  EXPECT_THAT(failure(Errc::DataMalformed, [&] { (void)parquet_source(folder.text()); }), HasSubstr("c.parquet has other columns than"));
  write_parquet_file(folder, "c.parquet", table->RenameColumns({"id", "text", "id2"}).ValueOrDie(), 5);
  EXPECT_THAT(failure(Errc::DataMalformed, [&] { (void)parquet_source(folder.text()); }), HasSubstr("it has no column 'score'"));
}

TEST(ParquetSource, ADamagedPageCostsTheRestOfItsRowGroupByPolicy) {
  const Folder folder;
  const auto path = write_parquet_file(folder, "a.parquet", table_of(0, 3000), 1000);
  const auto second = static_cast<std::size_t>(fs::file_size(path) / 2);  // within the middle row group's pages
  flip(path, second);
  const auto source = parquet_source(path);
  const auto reading = read_all(*source, small_blocks(100), true);
  ASSERT_EQ(reading.bad.size(), 1u);
  EXPECT_THAT(reading.bad[0].where, HasSubstr("a.parquet, row group 1, from row "));
  EXPECT_EQ(reading.num_source_rows, 3000);
  EXPECT_EQ(static_cast<std::int64_t>(reading.rows.size()) + reading.bad[0].num_rows, 3000);
  EXPECT_THAT(failure(Errc::FileCorrupt, [&] { read_all(*source); }), HasSubstr("a.parquet, row group 1: "));
  expect_positions_hold(*parquet_source(write_parquet_file(folder, "b.parquet", table_of(0, 30), 10)));
}

TEST(ParquetSource, FootersThatAreBrokenNameTheFile) {
  const Folder folder;
  const auto path = write_parquet_file(folder, "a.parquet", table_of(0, 30), 10);
  const auto whole = read_bytes(path);
  folder.write("empty.parquet", "");
  EXPECT_THAT(failure(Errc::FileCorrupt, [&] { (void)parquet_source(folder / "empty.parquet"); }), HasSubstr("empty.parquet: "));
  folder.write("cut.parquet", whole.substr(0, whole.size() - 5));
  EXPECT_THAT(failure(Errc::FileCorrupt, [&] { (void)parquet_source(folder / "cut.parquet"); }), HasSubstr("cut.parquet: "));
  // Any byte of the footer: an error that names the file, or rows.
  const auto footer = whole.size() - 8 - static_cast<std::size_t>(static_cast<unsigned char>(whole[whole.size() - 8]) | static_cast<unsigned char>(whole[whole.size() - 7]) << 8);
  int refused = 0;
  for (std::size_t at = footer; at < whole.size(); at += 3) {
    auto bytes = whole;
    bytes[at] = static_cast<char>(bytes[at] ^ 0x41);
    folder.write("bent.parquet", bytes);
    try {
      read_all(*parquet_source(folder / "bent.parquet"));
    } catch (const Failure& caught) {
      EXPECT_THAT(caught.what(), HasSubstr("bent.parquet"));
      ++refused;
    }
  }
  EXPECT_GT(refused, 20);
}

TEST(ParquetSource, DictionaryColumnsComeAsPlainValues) {
  const Folder folder;
  arrow::StringDictionaryBuilder words;
  for (int i = 0; i < 6; ++i) ASSERT_TRUE(words.Append(i % 2 ? "odd" : "even").ok());
  const auto column = words.Finish().ValueOrDie();
  const auto table = arrow::Table::Make(arrow::schema({arrow::field("w", column->type())}), {column});
  for (const auto& source : {parquet_source(write_parquet_file(folder, "a.parquet", table, 4)), ipc_source(write_ipc_file(folder, "a.arrow", table, 4))}) {
    EXPECT_EQ(source->schema()->ToString(), "w: string");
    EXPECT_THAT(read_all(*source).rows, ElementsAre("even", "odd", "even", "odd", "even", "odd"));
  }
  write_ipc_file(folder, "a.arrows", table, 4, true);
  EXPECT_THAT(failure(Errc::Unsupported, [&] { (void)ipc_source(folder / "a.arrows"); }), HasSubstr("write it as an IPC file"));
}

TEST(ParquetSource, StringsThatAreNoTextAreBadRows) {
  const Folder folder;
  arrow::BinaryBuilder bytes;
  for (const char* word : {"a", "b\xff", "c", "\xed\xa0\x80", "e"}) ASSERT_TRUE(bytes.Append(word).ok());
  const auto column = bytes.Finish().ValueOrDie()->View(arrow::utf8()).ValueOrDie();
  const auto table = arrow::Table::Make(arrow::schema({arrow::field("w", arrow::utf8())}), {column});
  for (const auto& source : {parquet_source(write_parquet_file(folder, "a.parquet", table, 5)), ipc_source(write_ipc_file(folder, "a.arrow", table, 5))}) {
    const auto reading = read_all(*source, small_blocks(2), true);
    EXPECT_THAT(reading.rows, ElementsAre("a", "c", "e"));
    ASSERT_EQ(reading.bad.size(), 2u);
    EXPECT_THAT(reading.bad[1].where, HasSubstr(", row 3"));
    EXPECT_EQ(reading.bad[1].why, "column 'w' is not valid UTF-8");
    expect_positions_hold(*source, true);
  }
}

TEST(IpcSource, FilesAndStreamsAreReadBatchByBatch) {
  const Folder folder;
  write_ipc_file(folder, "a.arrow", table_of(0, 20), 7);
  write_ipc_file(folder, "b.arrows", table_of(20, 33), 5, true);
  const auto source = ipc_source(folder.text());
  ASSERT_EQ(source->fragments().size(), 6u);
  EXPECT_EQ(source->fragments()[5].num_rows, 3);
  EXPECT_THAT(source->fragments()[5].path, HasSubstr("b.arrows, record batch 2"));
  EXPECT_EQ(read_all(*source).rows, rows_of(0, 33));
  expect_positions_hold(*source);
  auto options = small_blocks();
  options.columns = {"score", "id"};
  EXPECT_EQ(read(*source, 5, 2, options).rows, std::vector<std::string>{"8|32"});
}

TEST(IpcSource, BytesThatAreBentGiveRowsOrAnErrorThatNamesTheFile) {
  const Folder folder;
  for (const bool stream : {false, true}) {
    const auto whole = read_bytes(write_ipc_file(folder, "a.arrow", table_of(0, 12), 6, stream));
    for (std::size_t at = 0; at < whole.size(); at += 11) {
      auto bytes = whole;
      bytes[at] = static_cast<char>(bytes[at] ^ 0xC1);
      folder.write("bent.arrow", bytes);
      try {
        read_all(*ipc_source(folder / "bent.arrow"), small_blocks(), true);
      } catch (const Failure& caught) {
        EXPECT_THAT(caught.what(), HasSubstr("bent.arrow"));
      }
    }
    folder.write("cut.arrow", whole.substr(0, whole.size() / 2));
    EXPECT_THAT(failure(Errc::FileCorrupt, [&] { read_all(*ipc_source(folder / "cut.arrow")); }), HasSubstr("cut.arrow"));
  }
}

TEST(NpySource, RowsAreElementsAlongTheFirstAxis) {
  const auto array = [](const std::string& header, const std::string& data) {
    std::string text = header;
    while ((10 + text.size() + 1) % 64) text += ' ';
    text += '\n';
    return std::string("\x93NUMPY\x01\0", 8) + static_cast<char>(text.size() & 255) + static_cast<char>(text.size() >> 8) + text + data;
  };
  const Folder folder;
  std::string numbers;
  for (std::int32_t i = 0; i < 12; ++i) numbers.append(reinterpret_cast<const char*>(&i), 4);
  folder.write("a.npy", array("{'descr': '<i4', 'fortran_order': False, 'shape': (6, 2), }", numbers));
  NpyOptions options;
  options.fragment_bytes = 32;
  const auto source = npy_source(folder / "a.npy", options);
  EXPECT_EQ(source->schema()->ToString(), "data: fixed_size_list<item: int32>[2]");
  ASSERT_EQ(source->fragments().size(), 2u);
  EXPECT_THAT(read_all(*source).rows, ElementsAre("fixed_size_list<item: int32>[2][0, 1]", "fixed_size_list<item: int32>[2][2, 3]", "fixed_size_list<item: int32>[2][4, 5]", "fixed_size_list<item: int32>[2][6, 7]",
                                                  "fixed_size_list<item: int32>[2][8, 9]", "fixed_size_list<item: int32>[2][10, 11]"));
  expect_positions_hold(*source);
  folder.write("b.npy", array("{'descr': '<i4', 'fortran_order': False, 'shape': (12,), }", numbers));
  EXPECT_THAT(read_all(*npy_source(folder / "b.npy")).rows, ElementsAre("0", "1", "2", "3", "4", "5", "6", "7", "8", "9", "10", "11"));
  folder.write("c.npy", array("{'descr': '<i4', 'fortran_order': False, 'shape': (13,), }", numbers));
  EXPECT_THAT(failure(Errc::FileCorrupt, [&] { (void)npy_source(folder / "c.npy"); }), HasSubstr("shorter than its shape"));
  folder.write("c.npy", array("{'descr': '|O', 'fortran_order': False, 'shape': (13,), }", numbers));
  EXPECT_THAT(failure(Errc::Unsupported, [&] { (void)npy_source(folder / "c.npy"); }), HasSubstr("holds '|O'"));
  EXPECT_THAT(failure(Errc::DataMalformed, [&] { (void)npy_source({folder / "a.npy", folder / "b.npy"}); }), HasSubstr("b.npy has other rows"));
}

TEST(BinaryFilesSource, AFileIsARow) {
  const Folder folder;
  for (int i = 0; i < 5; ++i) folder.write("images/" + std::to_string(i) + ".png", std::string(static_cast<std::size_t>(i), static_cast<char>('a' + i)));
  BinaryFilesOptions options;
  options.fragment_bytes = 4;
  const auto source = binary_files_source(folder / "images", options);
  EXPECT_EQ(source->fragments().size(), 3u);
  auto read_options = small_blocks();
  read_options.columns = {"bytes"};
  EXPECT_THAT(read_all(*source, read_options).rows, ElementsAre("", "b", "cc", "ddd", "eeee"));
  expect_positions_hold(*source);
  fs::remove(folder / "images/1.png");
  options.max_file_bytes = 3;
  const auto smaller = binary_files_source(folder / "images", options);
  EXPECT_THAT(failure(Errc::FileNotFound, [&] { read_all(*source); }), HasSubstr("1.png"));
  const auto reading = read_all(*source, read_options, true);
  EXPECT_THAT(reading.rows, ElementsAre("", "cc", "ddd", "eeee"));
  EXPECT_THAT(reading.bad.at(0).where, HasSubstr("1.png"));
  EXPECT_THAT(read_all(*smaller, read_options, true).bad.at(0).why, HasSubstr("max_file_bytes is 3"));
}

TEST(TableSource, FragmentsCutAcrossItsChunks) {
  const auto table = arrow::ConcatenateTables({table_of(0, 4), table_of(4, 5), table_of(5, 17)}).ValueOrDie();
  const auto source = table_source(table, 6);
  EXPECT_EQ(source->fragments().size(), 3u);
  EXPECT_EQ(read_all(*source).rows, rows_of(0, 17));
  expect_positions_hold(*source);
  EXPECT_THAT(table_source(table_of(0, 0))->fragments(), IsEmpty());
  const auto numbers = range_source(10, 4);
  EXPECT_THAT(read_all(*numbers).rows, ElementsAre("0", "1", "2", "3", "4", "5", "6", "7", "8", "9"));
  expect_positions_hold(*numbers);
}

}  // namespace
}  // namespace troupe
