#include <troupe/data_iterator.hpp>
#include <troupe/dataset/sources.hpp>

#include <arrow/api.h>
#include <arrow/io/file.h>
#include <gtest/gtest.h>
#include <parquet/arrow/writer.h>

#include <chrono>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <random>
#include <string>
#include <thread>

#include <unistd.h>

// Data sets larger than the memory that they may take, measured as the kernel counts it.

namespace troupe {
namespace {

namespace fs = std::filesystem;

constexpr std::int64_t width = 512;  // int64: rows of 4 KiB

/// Parquet files of about so many bytes, plain and uncompressed, so that what is on disk is what must be in memory.
class Files {
 public:
  Files(int num_files, std::int64_t bytes_each) {
    fs::create_directories(directory_);
    std::mt19937_64 draw{1};
    for (int f = 0; f < num_files; ++f) {
      const auto type = arrow::fixed_size_list(arrow::int64(), width);
      const auto schema = arrow::schema({arrow::field("ids", type), arrow::field("row", arrow::int64())});
      const auto file = arrow::io::FileOutputStream::Open((directory_ / (std::to_string(f) + ".parquet")).string()).ValueOrDie();
      const auto properties = parquet::WriterProperties::Builder().disable_dictionary()->build();
      const auto writer = parquet::arrow::FileWriter::Open(*schema, arrow::default_memory_pool(), file, properties).ValueOrDie();
      for (std::int64_t left = bytes_each; left > 0;) {
        const std::int64_t rows = 2048;  // row groups of 8 MiB
        auto values = arrow::AllocateBuffer(rows * width * 8).ValueOrDie();
        auto* words = reinterpret_cast<std::uint64_t*>(values->mutable_data());
        for (std::int64_t i = 0; i < rows * width; ++i) words[i] = draw() >> 1;
        auto numbers = std::make_shared<arrow::Int64Array>(rows * width, std::move(values));
        arrow::Int64Builder row;
        for (std::int64_t i = 0; i < rows; ++i) row.Append(rows_++).ok();
        const auto list = std::make_shared<arrow::FixedSizeListArray>(type, rows, numbers);
        const auto table = arrow::Table::Make(schema, {list, row.Finish().ValueOrDie()});
        EXPECT_TRUE(writer->WriteTable(*table, rows).ok());
        left -= rows * width * 8;
      }
      EXPECT_TRUE(writer->Close().ok());
    }
    arrow::default_memory_pool()->ReleaseUnused();
  }
  ~Files() { fs::remove_all(directory_); }
  [[nodiscard]] std::string path() const { return directory_.string(); }
  [[nodiscard]] std::int64_t rows() const { return rows_; }

 private:
  fs::path directory_ = fs::temp_directory_path() / ("troupe_stream_memory_" + std::to_string(::getpid()));
  std::int64_t rows_ = 0;
};

std::int64_t status_bytes(const char* field) {
  std::ifstream status{"/proc/self/status"};
  for (std::string word; status >> word;) {
    if (word == field) {
      std::int64_t kb = 0;
      status >> kb;
      return kb * 1024;
    }
  }
  return 0;
}

/// The most resident memory while `work` runs, above what there was before.
template <class Work>
std::int64_t peak_of(Work&& work) {
  std::ofstream{"/proc/self/clear_refs"} << 5;  // VmHWM begins anew
  const auto before = status_bytes("VmRSS:");
  work();
  return status_bytes("VmHWM:") - before;
}

void stream_within(int num_files, std::int64_t bytes_each, std::int64_t budget, std::int64_t limit) {
  const Files files{num_files, bytes_each};
  std::int64_t rows = 0, sum = 0;
  std::string stats;
  const auto peak = peak_of([&] {
    DataIterator::Setup setup;
    setup.execution.memory_budget_bytes = budget;
    const DataIterator iterator{Dataset{parquet_source(files.path())}, setup};
    auto range = iterator.iter_batches({.batch_size = 256, .prefetch_batches = 2});
    for (const auto& batch : range) {
      if (rows == 0) std::this_thread::sleep_for(std::chrono::milliseconds{500});  // time to read ahead as far as it may
      const auto& row = batch["row"];
      for (std::int64_t i = 0; i < row.size(0); ++i) sum += row.const_data_ptr<std::int64_t>()[i];
      rows += row.size(0);
    }
    stats = iterator.stats();
  });
  EXPECT_EQ(rows, files.rows());
  EXPECT_EQ(sum, rows * (rows - 1) / 2);
  EXPECT_LE(peak, limit) << stats;
  std::printf("%.0f MB of Parquet, budget %.0f MB: %.0f MB resident at most\n", static_cast<double>(num_files * bytes_each) / 1e6, static_cast<double>(budget) / 1e6,
              static_cast<double>(peak) / 1e6);
}

TEST(StreamMemory, StaysWithinItsBudget) { stream_within(4, 64 << 20, 48 << 20, 150'000'000); }
TEST(StreamMemory, SlowlyStreamsFourGigabytesThroughTwoHundredMegabytes) { stream_within(8, 512 << 20, 128 << 20, 200'000'000); }

}  // namespace
}  // namespace troupe
