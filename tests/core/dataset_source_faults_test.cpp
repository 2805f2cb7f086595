#include <arrow/io/compressed.h>
#include <arrow/io/file.h>
#include <arrow/util/compression.h>
#include <arrow/array/builder_primitive.h>
#include <arrow/type.h>
#include <sys/resource.h>

#include <troupe/dataset/sinks.hpp>

#include "../checkpoint/s3_server.hpp"
#include "dataset_files.hpp"

namespace troupe {
namespace {

using namespace troupe::testing;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::vector<std::string> files_of(const Source& source) {
  std::vector<std::string> names;
  for (const auto& fragment : source.fragments()) names.push_back(fragment.path.substr(fragment.path.rfind('/') + 1));
  return names;
}

std::shared_ptr<arrow::Table> numbers(std::int64_t rows) {
  arrow::Int64Builder builder;
  for (std::int64_t i = 0; i < rows; ++i) EXPECT_TRUE(builder.Append(i).ok());
  return arrow::Table::Make(arrow::schema({arrow::field("n", arrow::int64())}), {builder.Finish().ValueOrDie()});
}

TEST(Files, AreFoundInDirectoriesAndByGlobsInOrder) {
  const Folder folder;
  for (const char* name : {"d/b.txt", "d/a.txt", "d/sub/c.txt", "d/.hidden/x.txt", "d/_tmp/x.txt", "d/.x.txt", "d/note.md", "d/sub/deep/e.txt", "d/sub2/c1.txt", "d/[x].txt"}) folder.write(name, "row\n");
  fs::create_directory_symlink("..", folder / "d/sub/loop");
  EXPECT_THAT(files_of(*text_source(folder / "d")), ElementsAre("[x].txt", "a.txt", "b.txt", "c.txt", "e.txt", "c1.txt"));
  EXPECT_THAT(files_of(*text_source(folder / "d/*.txt")), ElementsAre("[x].txt", "a.txt", "b.txt"));
  EXPECT_THAT(files_of(*text_source(folder / "d/sub*/c*.txt")), ElementsAre("c.txt", "c1.txt"));
  EXPECT_THAT(files_of(*text_source(folder / "d/**/[ce].txt")), ElementsAre("c.txt", "e.txt"));
  EXPECT_THAT(files_of(*text_source(folder / "d/[x].txt")), ElementsAre("[x].txt"));  // a file that is there is no pattern
  EXPECT_THAT(files_of(*text_source({folder / "d/b.txt", folder / "d/?.txt"})), ElementsAre("b.txt", "a.txt", "b.txt"));
  TextOptions all;
  all.files.extensions = {".md"};
  EXPECT_THAT(files_of(*text_source(folder / "d", all)), ElementsAre("note.md"));
}

TEST(Files, ThatAreNotThereAreNamed) {
  const Folder folder;
  folder.write("d/a.bin", "");
  EXPECT_THAT(failure(Errc::FileNotFound, [&] { (void)text_source(folder / "no.txt"); }), HasSubstr("no.txt"));
  EXPECT_THAT(failure(Errc::FileNotFound, [&] { (void)text_source(folder / "*.txt"); }), HasSubstr("nothing matches it"));
  EXPECT_THAT(failure(Errc::FileNotFound, [&] { (void)text_source(folder / "d"); }), HasSubstr("holds no file that ends in .txt"));
  EXPECT_THAT(failure(Errc::InvalidArgument, [&] { (void)text_source(std::vector<std::string>{}); }), HasSubstr("at least one path"));
  EXPECT_THAT(failure(Errc::InvalidConfig, [&] { (void)text_source("gs://bucket/x"); }), HasSubstr("gs"));
}

TEST(Files, FingerprintsKnowNamesAndSizesAndNotWhereTheyLie) {
  const Folder one, other;
  for (const auto* folder : {&one, &other}) {
    folder->write("d/a.txt", "x\n");
    folder->write("d/b.txt", "y\n");
  }
  EXPECT_EQ(text_source(one / "d")->fingerprint(), text_source(other / "d")->fingerprint());
  other.write("d/b.txt", "yy\n");
  EXPECT_NE(text_source(one / "d")->fingerprint(), text_source(other / "d")->fingerprint());
}

TEST(Files, CompressedLinesAreOneFragment) {
  const Folder folder;
  std::string text;
  for (int i = 0; i < 5000; ++i) text += "line " + std::to_string(i) + "\n";
  for (const auto& [extension, type] : {std::pair{"gz", arrow::Compression::GZIP}, std::pair{"zst", arrow::Compression::ZSTD}}) {
    const auto path = folder / (std::string{"a.txt."} + extension);
    const auto codec = arrow::util::Codec::Create(type).ValueOrDie();
    const auto out = arrow::io::CompressedOutputStream::Make(codec.get(), arrow::io::FileOutputStream::Open(path).ValueOrDie()).ValueOrDie();
    ASSERT_TRUE(out->Write(text).ok() && out->Close().ok());
    TextOptions options;
    options.lines.fragment_bytes = 100;
    const auto source = text_source(path, options);
    ASSERT_EQ(source->fragments().size(), 1u);
    const auto all = read(*source, 0, 0, small_blocks(1000)).rows;
    EXPECT_EQ(all.size(), 5000u);
    EXPECT_EQ(read(*source, 0, 4321, small_blocks()).rows.front(), all[4321]);
    EXPECT_EQ(source->count_rows(0), 5000);
    const auto whole = read_bytes(path);
    folder.write("cut.txt." + std::string{extension}, whole.substr(0, whole.size() / 2));
    EXPECT_THAT(failure(Errc::FileCorrupt, [&] { read_all(*text_source(folder / ("cut.txt." + std::string{extension}))); }), HasSubstr("cut.txt"));
  }
}

/// Every format: what happens to its file between listing and opening, and while it is read.
struct Format {
  const char* name;
  std::function<std::shared_ptr<const Source>(const Folder&)> make;  ///< of the file "a"
};
class Faults : public ::testing::TestWithParam<Format> {};

std::string lines_of(const std::string& line) {
  std::string text;
  for (int i = 0; i < 400'000; ++i) text += line;
  return text;
}

INSTANTIATE_TEST_SUITE_P(Formats, Faults,
                         ::testing::Values(Format{"text", [](const Folder& f) { f.write("a", lines_of("some text\n")); return text_source(f / "a"); }},
                                           Format{"csv", [](const Folder& f) { f.write("a", "n,t\n" + lines_of("1,some\n")); return csv_source(f / "a"); }},
                                           Format{"json", [](const Folder& f) { f.write("a", lines_of("{\"a\":1}\n")); return json_lines_source(f / "a"); }},
                                           Format{"parquet", [](const Folder& f) { ParquetWriteOptions o; o.compression = "none"; o.row_group_rows = 4'000'000; o.files.rows_per_file = 0; fs::rename(write_parquet(stream_of(numbers(4'000'000)), f.text(), o)[0], f / "a"); return parquet_source(f / "a"); }},
                                           Format{"ipc", [](const Folder& f) { fs::rename(write_ipc(stream_of(numbers(400'000)), f.text())[0], f / "a"); return ipc_source(f / "a"); }}),
                         [](const auto& param) { return std::string{param.param.name}; });

TEST_P(Faults, AFileThatIsGoneIsNamed) {
  const Folder folder;
  const auto source = GetParam().make(folder);
  fs::remove(folder / "a");
  EXPECT_THAT(failure(Errc::FileNotFound, [&] { (void)source->open(0, 0, {}); }), HasSubstr("a: No such file or directory (it was there when the data set was made)"));
}

TEST_P(Faults, AFileOfAnotherSizeIsNamed) {
  const Folder folder;
  const auto source = GetParam().make(folder);
  fs::resize_file(folder / "a", fs::file_size(folder / "a") - 100);
  EXPECT_THAT(failure(Errc::FileCorrupt, [&] { (void)source->open(0, 0, {}); }), HasSubstr("a has changed since the data set was made: it had "));
}

TEST_P(Faults, AFileCutWhileItIsReadIsNamed) {
  const Folder folder;
  const auto source = GetParam().make(folder);
  auto options = small_blocks(1000);
  options.block_bytes = 1;  // reads of 64 KiB
  const auto reader = source->open(0, 0, options);
  const bool whole = std::string{GetParam().name} == "ipc";  // a record batch is read at once
  ASSERT_TRUE(whole || reader->next());
  fs::resize_file(folder / "a", 1000);
  EXPECT_THAT(failure(Errc::FileCorrupt, [&] {
                while (reader->next()) {
                }
              }),
              HasSubstr("/a"));
}

TEST_P(Faults, EveryReaderGivesItsFileBack) {
  const Folder folder;
  const auto source = GetParam().make(folder);
  const auto files = open_files();
  for (int blocks = 0; blocks < 3; ++blocks) {
    const auto reader = source->open(0, 10, small_blocks(100));
    for (int i = 0; i < blocks; ++i) (void)reader->next();
  }
  try {
    auto options = small_blocks();
    options.columns = {"no such column"};
    (void)source->open(0, 0, options);
    ADD_FAILURE() << "opened";
  } catch (const Failure&) {
  }
  EXPECT_EQ(open_files_falling_to(files), files);
}

TEST(Faults, AParquetFileWrittenOverWithOtherColumnsIsNoticed) {
  const Folder folder;
  const auto write = [&](const std::string& column) {
    ParquetWriteOptions options;
    options.compression = "none";
    fs::rename(write_parquet(stream_of(numbers(100)->RenameColumns({column}).ValueOrDie()), folder.text(), options)[0], folder / "a");
  };
  write("one");
  const auto source = parquet_source(folder / "a");
  EXPECT_EQ(read_all(*source).rows.size(), 100u);
  std::this_thread::sleep_for(std::chrono::milliseconds{20});  // another time of change
  write("two");                                               // of the same size
  EXPECT_THAT(failure(Errc::DataMalformed, [&] { (void)source->open(0, 0, {}); }), HasSubstr("a has changed since the data set was made: it has no column 'one'"));
}

std::int64_t resident_bytes() {
  std::ifstream statm{"/proc/self/statm"};
  std::int64_t all = 0, resident = 0;
  statm >> all >> resident;
  return resident * ::sysconf(_SC_PAGESIZE);
}

/// Reads a fragment to its end; the most that the process grew by meanwhile.
std::int64_t growth_while_reading(const Source& source, std::int64_t first_row) {
  const auto before = resident_bytes();
  std::int64_t most = 0;
  const auto reader = source.open(0, first_row, {});
  for (int i = 0; reader->next(); ++i) {
    if (i % 16 == 0) most = std::max(most, resident_bytes() - before);
  }
  return most;
}

TEST(Memory, ARowGroupOf200MegabytesIsNotHeld) {
  const Folder folder;
  auto at = std::make_shared<int>(0);
  const auto part = numbers(500'000)->CombineChunksToBatch().ValueOrDie();
  ParquetWriteOptions options;
  options.compression = "none";
  options.files.rows_per_file = 0;
  options.row_group_rows = 1 << 30;
  (void)write_parquet({part->schema(), [=]() -> RecordBatchPtr { return (*at)++ < 50 ? part : nullptr; }}, folder.text(), options);
  const auto source = parquet_source(folder.text());
  ASSERT_EQ(source->fragments().size(), 1u);
  ASSERT_GT(source->fragments()[0].num_bytes, 50 << 20);
  EXPECT_LT(growth_while_reading(*source, 0), 50 << 20);
}

TEST(Memory, ALineFileOf100MegabytesIsNotHeld) {
  const Folder folder;
  {
    std::ofstream out{folder / "a.jsonl"};
    const std::string line = "{\"text\":\"" + std::string(1000, 'x') + "\"}\n";
    for (int i = 0; i < 100'000; ++i) out << line;
  }
  JsonLinesOptions options;
  options.lines.fragment_bytes = std::int64_t{1} << 40;
  EXPECT_LT(growth_while_reading(*json_lines_source(folder / "a.jsonl", options), 50'000), 50 << 20);
}

TEST(ObjectStore, SourcesAndSinksWorkThere) {
  if (const auto missing = S3Server::missing(); !missing.empty()) GTEST_SKIP() << missing;
  const Folder folder;
  S3Server server{folder / "root"};
  server.make_bucket("data");
  const auto at = [&](const std::string& path) { return server.url(path); };
  ParquetWriteOptions options;
  options.files.rows_per_file = 40;
  options.row_group_rows = 15;
  const auto written = write_parquet(stream_of(numbers(100)), at("data/set"), options);
  EXPECT_THAT(written, ElementsAre("s3://data/set/part-00000.parquet", "s3://data/set/part-00001.parquet", "s3://data/set/part-00002.parquet"));
  EXPECT_THAT(failure(Errc::AlreadyExists, [&] { (void)write_parquet(stream_of(numbers(1)), at("data/set"), options); }), HasSubstr("s3://data/set/part-00000.parquet"));
  for (const auto& path : {at("data/set"), at("data/set/*.parquet"), at("data/**/part-0000[0-2].parquet")}) {
    const auto source = parquet_source(path);
    EXPECT_EQ(source->fragments().size(), 8u);
    EXPECT_EQ(read_all(*source).rows.size(), 100u);
  }
  EXPECT_EQ(read(*parquet_source(at("data/set")), 1, 12, small_blocks()).rows, (std::vector<std::string>{"27", "28", "29"}));
  (void)write_csv(stream_of(numbers(1000)), at("data/lines"));
  CsvOptions csv;
  csv.lines.fragment_bytes = 1000;
  EXPECT_EQ(read_all(*csv_source(at("data/lines"), csv), small_blocks(100)).num_source_rows, 1000);
  EXPECT_THAT(failure(Errc::FileNotFound, [&] { (void)csv_source(at("data/none.csv")); }), HasSubstr("s3://data/none.csv"));
}

}  // namespace
}  // namespace troupe
