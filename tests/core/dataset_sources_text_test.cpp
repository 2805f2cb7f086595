#include <arrow/type.h>

#include "dataset_files.hpp"

namespace troupe {
namespace {

using namespace troupe::testing;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

LineOptions tiny_fragments(std::int64_t bytes = 16) {
  LineOptions lines;
  lines.fragment_bytes = bytes;
  return lines;
}

std::string where_and_why(const Reading& reading) {
  std::string all;
  for (const auto& bad : reading.bad) all += bad.where.substr(bad.where.rfind('/') + 1) + ": " + bad.why + "\n";
  return all;
}

TEST(TextSource, EachLineIsARowWhateverEndsIt) {
  const Folder folder;
  const auto source = text_source(folder.write("a.txt", "one\r\ntwo\n\nfour"));
  EXPECT_THAT(read_all(*source).rows, ElementsAre("one", "two", "", "four"));
  TextOptions options;
  options.drop_empty_lines = true;
  EXPECT_THAT(read_all(*text_source(folder / "a.txt", options)).rows, ElementsAre("one", "two", "four"));
  EXPECT_NE(source->fingerprint(), text_source(folder / "a.txt", options)->fingerprint());
}

TEST(TextSource, CutsAtEveryByteGiveTheSameLines) {
  const Folder folder;
  folder.write("a.txt", "\xEF\xBB\xBF" "alpha\nbe\n\n\ngamma delta\r\nx\nlast");
  const auto whole = read_all(*text_source(folder / "a.txt")).rows;
  EXPECT_EQ(whole.size(), 7u);
  for (std::int64_t bytes = 1; bytes < 40; ++bytes) {
    TextOptions options;
    options.lines = tiny_fragments(bytes);
    const auto source = text_source(folder / "a.txt", options);
    EXPECT_EQ(read_all(*source).rows, whole) << bytes;
    expect_positions_hold(*source);
  }
}

TEST(TextSource, LinesLongerThanABufferAreWhole) {
  const Folder folder;
  std::string text;
  for (int i = 0; i < 50; ++i) text += std::string(static_cast<std::size_t>(i) * 9001, static_cast<char>('a' + i % 26)) + "\n";
  folder.write("a.txt", text);
  ReadOptions options;
  options.block_bytes = 1;  // as small as it goes: 64 KiB
  for (const std::int64_t bytes : {1 << 10, 100'000, 1 << 30}) {
    TextOptions cut;
    cut.lines = tiny_fragments(bytes);
    std::string again;
    for (const auto& row : read_all(*text_source(folder / "a.txt", cut), options).rows) again += row + "\n";
    EXPECT_TRUE(again == text) << bytes;
  }
}

TEST(TextSource, AnOverlongLineIsABadRowAndIsNotHeld) {
  const Folder folder;
  folder.write("a.txt", "short\n" + std::string(5 << 20, 'x') + "\nafter\n" + std::string(100, 'y') + "\nend");
  TextOptions options;
  options.lines.max_line_bytes = 99;
  const auto source = text_source(folder / "a.txt", options);
  const auto reading = read_all(*source, small_blocks(), true);
  EXPECT_THAT(reading.rows, ElementsAre("short", "after", "end"));
  EXPECT_EQ(where_and_why(reading), "a.txt, line 2: it is longer than max_line_bytes allows\na.txt, line 4: it is longer than max_line_bytes allows\n");
  EXPECT_EQ(source->count_rows(0), 5);
  expect_positions_hold(*source, true);
  EXPECT_THAT(failure(Errc::DataMalformed, [&] { read_all(*source); }), HasSubstr("a.txt, line 2: it is longer"));
}

TEST(TextSource, BytesThatAreNoTextAreBadRowsWithTheirLine) {
  const Folder folder;
  folder.write("a.txt", std::string("fine\nn\0l\nbad \xff\xfe\nsur \xed\xa0\x80\nüñ€😀\n", 35));
  TextOptions options;
  options.lines = tiny_fragments(7);
  const auto source = text_source(folder / "a.txt", options);
  const auto reading = read_all(*source, small_blocks(), true);
  EXPECT_THAT(reading.rows, ElementsAre("fine", "üñ€😀"));
  EXPECT_EQ(where_and_why(reading), "a.txt, line 2: it has a NUL byte\na.txt, line 3: it is not valid UTF-8\na.txt, line 4: it is not valid UTF-8\n");
}

TEST(TextSource, Utf16IsToldApart) {
  const Folder folder;
  folder.write("a.txt", std::string("\xFF\xFEh\0i\0", 6));
  EXPECT_THAT(failure(Errc::DataMalformed, [&] { read_all(*text_source(folder / "a.txt")); }), HasSubstr("a.txt is UTF-16"));
}

TEST(TextSource, EmptyFilesHaveNoRows) {
  const Folder folder;
  folder.write("a.txt", "");
  folder.write("b.txt", "\n");
  EXPECT_THAT(text_source(folder / "a.txt")->fragments(), IsEmpty());
  EXPECT_THAT(read_all(*text_source(folder.text())).rows, ElementsAre(""));
}

TEST(CsvSource, QuotesUnicodeAndTypes) {
  const Folder folder;
  folder.write("a.csv", "\xEF\xBB\xBFid,text,score,day\r\n1,\"a, \"\"b\"\"\",1.5,2020-01-02\r\n2,ü\"x,,2021-01-01\r\n3,,NaN,\r\n");
  const auto source = csv_source(folder / "a.csv");
  EXPECT_EQ(source->schema()->ToString(), "id: int64\ntext: string\nscore: double\nday: date32[day]");
  EXPECT_THAT(read_all(*source).rows, ElementsAre("1|a, \"b\"|1.5|2020-01-02", "2|ü\"x|null|2021-01-01", "3||null|null"));
  expect_positions_hold(*source);
}

TEST(CsvSource, ProjectsColumnsInTheOrderAsked) {
  const Folder folder;
  const auto source = csv_source(folder.write("a.csv", "a,b,c\n1,x,2\n3,y,4\n"));
  auto options = small_blocks();
  options.columns = {"c", "a"};
  EXPECT_THAT(read_all(*source, options).rows, ElementsAre("2|1", "4|3"));
  options.columns = {"bb"};
  EXPECT_THAT(failure(Errc::InvalidArgument, [&] { (void)source->open(0, 0, options); }), HasSubstr("there is no column 'bb'"));
}

TEST(CsvSource, BadRowsAreReportedWithTheirLinesAndOthersStay) {
  const Folder folder;
  // A blank line counts as a line and not as a row.
  folder.write("a.csv", "id,text\n1,a\n\n2,b,c\nx,d\n3\n4,\"open\n5,e\n6,f\xff\n7,g\rh\n8,\"\"\n9,z");
  CsvOptions options;
  options.column_types = {{"id", "int64"}};
  const auto source = csv_source(folder / "a.csv", options);
  const auto reading = read_all(*source, small_blocks(4), true);
  EXPECT_THAT(reading.rows, ElementsAre("1|a", "5|e", "8|", "9|z"));
  EXPECT_EQ(where_and_why(reading),
            "a.csv, line 4: Expected 2 columns, got 3: 2,b,c\n"
            "a.csv, line 5: column 'id' (int64): CSV conversion error to int64: invalid value 'x'\n"
            "a.csv, line 6: Expected 2 columns, got 1: 3\n"
            "a.csv, line 7: a quote is not closed\n"
            "a.csv, line 9: it is not valid UTF-8\n"
            "a.csv, line 10: it has a carriage return inside\n");
  EXPECT_EQ(reading.num_source_rows, 10);
  EXPECT_EQ(source->count_rows(0), 10);
  expect_positions_hold(*source, true);
  EXPECT_THAT(failure(Errc::DataMalformed, [&] { read_all(*source); }), HasSubstr("a.csv, line 4: Expected 2 columns, got 3"));
}

TEST(CsvSource, FragmentsAndBlocksOfAnySizeAgree) {
  const Folder folder;
  std::string text = "n,words\n";
  for (int i = 0; i < 60; ++i) text += std::to_string(i) + (i % 7 == 3 ? ",\"broken" : i % 5 == 0 ? ",\"q,\"\"" + std::string(static_cast<std::size_t>(i), 'z') + "\"" : ",w") + (i % 3 ? "\n" : "\r\n");
  folder.write("a.csv", text);
  const auto whole = read_all(*csv_source(folder / "a.csv"), small_blocks(1000), true);
  EXPECT_EQ(whole.bad.size(), 9u);
  for (const std::int64_t bytes : {3, 8, 17, 64, 200, 1000}) {
    CsvOptions options;
    options.lines = tiny_fragments(bytes);
    const auto source = csv_source(folder / "a.csv", options);
    for (const std::int64_t rows : {1, 2, 7, 100}) {
      const auto reading = read_all(*source, small_blocks(rows), true);
      EXPECT_EQ(reading.rows, whole.rows);
      EXPECT_EQ(where_and_why(reading), where_and_why(whole));
      EXPECT_EQ(reading.num_source_rows, 60);
    }
    expect_positions_hold(*source, true);
  }
}

TEST(CsvSource, TabsWithoutQuotingTakeQuotesAsTheyAre) {
  const Folder folder;
  // As MRPC: a byte order mark, quotes anywhere, CRLF.
  folder.write("msr.tsv", "\xEF\xBB\xBFQuality\t#1 String\t#2 String\r\n1\t\"A quote\tHe said \"no\r\n0\t\"\t\"\"\"\r\n");
  const auto source = csv_source(folder / "msr.tsv", CsvOptions::tsv());
  EXPECT_EQ(source->schema()->field(0)->name(), "Quality");
  EXPECT_THAT(read_all(*source).rows, ElementsAre("1|\"A quote|He said \"no", "0|\"|\"\"\""));
  expect_positions_hold(*source);
}

TEST(CsvSource, LineEndsInQuotedValuesStayInTheValue) {
  const Folder folder;
  folder.write("a.csv", "a,b\n1,\"x\ny\"\r\n2,\"\n\n\"\n\"3\",z\"\nbad\n4,\"never\nclosed");
  CsvOptions options;
  options.newlines_in_values = true;
  options.lines = tiny_fragments(4);
  const auto source = csv_source(folder / "a.csv", options);
  ASSERT_EQ(source->fragments().size(), 1u);
  const auto reading = read_all(*source, small_blocks(2), true);
  EXPECT_THAT(reading.rows, ElementsAre("1|x\ny", "2|\n\n", "3|z\""));
  EXPECT_EQ(where_and_why(reading), "a.csv, line 8: Expected 2 columns, got 1: bad\na.csv, line 9: a quote is not closed\n");
  expect_positions_hold(*source, true);
}

TEST(CsvSource, AQuoteNeverClosedDoesNotTakeTheFileWithIt) {
  const Folder folder;
  std::string text = "a,b\n1,\"open\n";
  for (int i = 0; i < 400; ++i) text += std::to_string(i) + ",x\n";
  folder.write("a.csv", text);
  CsvOptions options;
  options.newlines_in_values = true;
  options.lines.max_line_bytes = 300;
  const auto source = csv_source(folder / "a.csv", options);
  const auto reading = read_all(*source, small_blocks(), true);
  EXPECT_EQ(where_and_why(reading), "a.csv, line 2: it is longer than max_line_bytes allows\n");
  EXPECT_GT(reading.rows.size(), 300u);
  EXPECT_EQ(reading.rows.back(), "399|x");
  expect_positions_hold(*source, true);
}

TEST(CsvSource, HeadersMustAgreeAndNamesMustDiffer) {
  const Folder folder;
  folder.write("a.csv", "a,b\n1,2\n");
  folder.write("b.csv", "a,c\n1,2\n");
  const auto source = csv_source({folder / "a.csv", folder / "b.csv"});
  EXPECT_THAT(failure(Errc::DataMalformed, [&] { (void)source->open(1, 0, {}); }), HasSubstr("b.csv, line 1: the header differs from that of"));
  EXPECT_THAT(failure(Errc::DataMalformed, [&] { (void)csv_source(folder.write("c.csv", "a,a\n")); }), HasSubstr("c.csv, line 1: two columns are called 'a'"));
  EXPECT_THAT(failure(Errc::DataMalformed, [&] { (void)csv_source(folder.write("d.csv", "")); }), HasSubstr("d.csv is empty"));
}

TEST(CsvSource, WithoutAHeaderColumnsAreNumberedOrNamed) {
  const Folder folder;
  folder.write("a.csv", "1,x\n2,y\n");
  CsvOptions options;
  options.header = false;
  EXPECT_EQ(csv_source(folder / "a.csv", options)->schema()->ToString(), "f0: int64\nf1: string");
  options.column_names = {"n", "s"};
  options.column_types = {{"n", "float"}};
  const auto source = csv_source(folder / "a.csv", options);
  EXPECT_EQ(source->schema()->ToString(), "n: float\ns: string");
  EXPECT_THAT(read_all(*source).rows, ElementsAre("1|x", "2|y"));
  options.column_types = {{"m", "float"}};
  EXPECT_THAT(failure(Errc::InvalidArgument, [&] { (void)csv_source(folder / "a.csv", options); }), HasSubstr("there is no column 'm'"));
  options.column_types = {{"n", "flot"}};
  EXPECT_THAT(failure(Errc::InvalidArgument, [&] { (void)csv_source(folder / "a.csv", options); }), HasSubstr("did you mean 'float'?"));
}

TEST(CsvSource, AnInferredTypeThatDoesNotHoldSaysHowToSayOtherwise) {
  const Folder folder;
  std::string text = "n\n";
  while (text.size() < (1 << 20) + 100) text += "12345678\n";
  const auto source = csv_source(folder.write("a.csv", text + "word\n"));
  EXPECT_THAT(failure(Errc::DataMalformed, [&] { read_all(*source, small_blocks(10'000)); }), HasSubstr("column 'n' (int64, inferred; column_types can say otherwise)"));
}

TEST(JsonLinesSource, TypesNestingAndUnknownKeys) {
  const Folder folder;
  folder.write("a.jsonl", "{\"id\":1,\"text\":\"ü\\n\",\"when\":\"2020-01-01\",\"ids\":[1,2],\"none\":null}\r\n\n  {\"id\":2.5,\"more\":{\"x\":1}} \n{}");
  const auto source = json_lines_source(folder / "a.jsonl");
  EXPECT_EQ(source->schema()->ToString(), "id: double\ntext: string\nwhen: string\nids: list<item: int64>\nnone: string\nmore: struct<x: int64>");
  EXPECT_EQ(read_all(*source).num_source_rows, 3);
  expect_positions_hold(*source);
  auto options = small_blocks();
  options.columns = {"text", "id"};
  EXPECT_THAT(read_all(*source, options).rows, ElementsAre("ü\n|1", "null|2.5", "null|null"));
}

TEST(JsonLinesSource, BrokenLinesAreBadRows) {
  const Folder folder;
  const std::string lines = "{\"a\":1}\n{\"a\":\n2}\n{\"a\":3}{\"a\":4}\n[5]\n{\"a\":\"x\"}\n\n{\"a\":1,\"a\":2}\n{\"a\":99999999999999999999}\nnull\n{\"a\":\"\\ud800\"}\n{\"b\":\"\xff\"}\n{\"a\":7";
  folder.write("a.jsonl", lines);
  JsonLinesOptions options;
  options.column_types = {{"a", "int64"}};
  for (const std::int64_t bytes : {5, 1000}) {
    options.lines = tiny_fragments(bytes);
    const auto source = json_lines_source(folder / "a.jsonl", options);
    const auto reading = read_all(*source, small_blocks(100), true);
    EXPECT_EQ(reading.rows.size(), 1u);
    EXPECT_EQ(reading.num_source_rows, 12);
    EXPECT_EQ(where_and_why(reading),
              "a.jsonl, line 2: its JSON object does not end\n"
              "a.jsonl, line 3: it is no JSON object\n"
              "a.jsonl, line 4: it holds more than one JSON object\n"
              "a.jsonl, line 5: it is no JSON object\n"
              "a.jsonl, line 6: Column(/a) changed from number to string\n"
              "a.jsonl, line 8: Column(/a) was specified twice\n"
              "a.jsonl, line 9: Failed to convert JSON to int64, couldn't parse:99999999999999999999\n"
              "a.jsonl, line 10: it is no JSON object\n"
              "a.jsonl, line 11: The surrogate pair in string is invalid.\n"
              "a.jsonl, line 12: it is not valid UTF-8\n"
              "a.jsonl, line 13: its JSON object does not end\n");
    expect_positions_hold(*source, true);
  }
}

TEST(JsonLinesSource, SchemasComeFromLinesThatAgreeOrFromTheUser) {
  const Folder folder;
  const auto source = json_lines_source(folder.write("a.jsonl", "{broken}\n{\"a\":1}\n{\"a\":\"x\",\"b\":2}\n"));
  EXPECT_EQ(source->schema()->ToString(), "a: int64\nb: int64");
  EXPECT_THAT(failure(Errc::DataMalformed, [&] { (void)json_lines_source(folder.write("b.jsonl", "\n")); }), HasSubstr("set column_types"));
  JsonLinesOptions options;
  options.column_types = {{"ids", "list<int32>"}};
  EXPECT_EQ(json_lines_source(folder / "b.jsonl", options)->schema()->field(0)->type()->ToString(), "list<item: int32>");
}

TEST(JsonLinesSource, DeepNestingIsNoSchemaAndNoHang) {
  const Folder folder;
  const std::string deep = "{\"a\":" + std::string(200'000, '[') + std::string(200'000, ']') + "}\n";
  JsonLinesOptions options;
  const auto source = json_lines_source(folder.write("a.jsonl", "{\"a\":[1]}\n" + deep + "{\"b\":" + deep.substr(0, deep.size() - 1) + "}\n"), options);
  EXPECT_EQ(source->schema()->num_fields(), 1);
  const auto reading = read_all(*source, small_blocks(), true);
  EXPECT_EQ(reading.rows.size() + reading.bad.size(), 3u);
  EXPECT_EQ(reading.bad.size(), 1u);
}

}  // namespace
}  // namespace troupe
