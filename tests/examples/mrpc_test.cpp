#include <gtest/gtest.h>
#include <unistd.h>

#include <troupe/mrpc.hpp>

#include "golden.hpp"

namespace troupe {
namespace {

namespace fs = std::filesystem;
using test::failure_of;

const std::string kHeader = "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String";

struct Scratch {
  fs::path path = [] {
    std::string name = (fs::temp_directory_path() / "mrpc_XXXXXX").string();
    return fs::path{::mkdtemp(name.data())};
  }();
  ~Scratch() { fs::remove_all(path); }
  [[nodiscard]] fs::path write(const std::string& name, const std::string& text) const {
    std::ofstream{path / name, std::ios::binary} << text;
    return path / name;
  }
};

TEST(mrpc, ReadsPlainMarkedAndCarriageReturnFilesAlike) {
  const Scratch scratch;
  for (const auto* const mark : {"", "\xEF\xBB\xBF"}) {
    for (const auto* const end : {"\n", "\r\n"}) {
      const std::string e = end;
      const auto rows = read_mrpc(scratch.write("x", mark + kHeader + e +
                                                         "1\t2\t3\tA \"quote\t\xE2\x80\x9C"
                                                         "B\xE2\x80\x9D" +
                                                         e + "0\t4\t5\tC\tD" + e));
      ASSERT_EQ(rows.size(), 2U);
      EXPECT_EQ(rows[0].first, "A \"quote");
      EXPECT_EQ(rows[0].second,
                "\xE2\x80\x9C"
                "B\xE2\x80\x9D");
      EXPECT_EQ(rows[0].label, 1);
      EXPECT_EQ(rows[1].label, 0);
      EXPECT_EQ(rows[1].second, "D");
    }
  }
}

TEST(mrpc, TheLastLineNeedsNoEndAndEmptyLinesAfterItAreNothing) {
  const Scratch scratch;
  EXPECT_EQ(read_mrpc(scratch.write("x", kHeader + "\n1\t2\t3\tA\tB")).size(), 1U);
  EXPECT_EQ(read_mrpc(scratch.write("x", kHeader + "\n1\t2\t3\tA\tB\n\n\r\n")).size(), 1U);
}

TEST(mrpc, TheHeaderSaysWhereTheColumnsAre) {
  const Scratch scratch;
  const auto rows = read_mrpc(scratch.write("x", "sentence1\tsentence2\tlabel\tidx\nA\tB\t1\t0\n"));
  EXPECT_EQ(rows.at(0).first, "A");
  EXPECT_EQ(rows.at(0).label, 1);
}

TEST(mrpc, BadRowsAreRefusedByFileAndLine) {
  const Scratch scratch;
  const std::pair<const char*, const char*> cases[] = {
      {"1\t2\t3\tA", "has 4 tab-separated columns, the header names 5"},
      {"1\t2\t3\tA\tB\tC", "has 6 tab-separated columns"},
      {"", "has 1 tab-separated columns"},
      {"2\t2\t3\tA\tB", "label should be 0 or 1, not '2'"},
      {"\t2\t3\tA\tB", "label should be 0 or 1, not ''"},
      {"1\t2\t3\t\tB", "column 4 is empty"},
      {"1\t2\t3\tA\tB\xFF", "byte 10 of the line is not UTF-8"},
      {"1\t2\t3\tA\tB\xC0\x80", "is not UTF-8"},
      {"1\t2\t3\tA\tB\xE2\x80", "is not UTF-8"}};
  for (const auto& [row, want] : cases) {
    const auto file =
        scratch.write("pairs.tsv", kHeader + "\n1\t2\t3\tA\tB\n" + row + "\n1\t2\t3\tA\tB\n");
    const auto text = failure_of([&] { (void)read_mrpc(file); });
    EXPECT_TRUE(text.starts_with("DataMalformed") &&
                text.find("pairs.tsv:3: ") != std::string::npos &&
                text.find(want) != std::string::npos)
        << row << ": " << text;
  }
}

TEST(mrpc, FilesThatAreNoPairsAreRefused) {
  const Scratch scratch;
  EXPECT_NE(failure_of([&] { (void)read_mrpc(scratch.write("x", "")); }).find("no pairs"),
            std::string::npos);
  EXPECT_NE(
      failure_of([&] { (void)read_mrpc(scratch.write("x", kHeader + "\n")); }).find("no pairs"),
      std::string::npos);
  EXPECT_NE(failure_of([&] {
              (void)read_mrpc(scratch.write("x", "a\tb\n1\t2\n"));
            }).find("x:1: the header has no column 'Quality'"),
            std::string::npos);
  EXPECT_NE(failure_of([&] { (void)read_mrpc(scratch.write("x", "\xFF\xFEQ\0u\0")); }).find("x:1:"),
            std::string::npos);
  EXPECT_TRUE(
      failure_of([&] { (void)read_mrpc(scratch.path / "none"); }).starts_with("FileNotFound"));
  EXPECT_TRUE(failure_of([&] { (void)read_mrpc(scratch.path); }).starts_with("FileNotFound"));
}

TEST(mrpc, BothSplitsAreFoundByTheirUsualNamesOrTheGivenOnes) {
  const Scratch scratch;
  EXPECT_NE(failure_of([&] {
              (void)load_pairs(scratch.path);
            }).find("pairs_train.tsv, train.tsv, msr_paraphrase_train.txt"),
            std::string::npos);
  (void)scratch.write("msr_paraphrase_train.txt", kHeader + "\n1\t2\t3\tA\tB\n");
  (void)scratch.write("dev.tsv", kHeader + "\n0\t2\t3\tC\tD\n");
  EXPECT_EQ(load_pairs(scratch.path).train.at(0).first, "A");
  EXPECT_EQ(load_pairs(scratch.path).eval.at(0).first, "C");
  EXPECT_EQ(load_pairs(scratch.path, "dev.tsv", "msr_paraphrase_train.txt").eval.at(0).first, "A");
}

}  // namespace
}  // namespace troupe
