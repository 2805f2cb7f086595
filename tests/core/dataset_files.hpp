#pragma once

#include <arrow/array.h>
#include <arrow/array/concatenate.h>
#include <arrow/record_batch.h>
#include <arrow/scalar.h>
#include <arrow/table.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <troupe/dataset/sources.hpp>
#include <troupe/errors.hpp>

#include <atomic>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <string>
#include <thread>
#include <vector>

namespace troupe::testing {

namespace fs = std::filesystem;

/// A folder that is gone when the test ends.
class Folder {
 public:
  Folder() {
    static std::atomic<int> number{0};
    path_ = fs::temp_directory_path() / ("troupe_dataset_" + std::to_string(::getpid()) + "_" + std::to_string(number++));
    fs::create_directories(path_);
  }
  ~Folder() {
    std::error_code ignored;
    fs::remove_all(path_, ignored);
  }
  Folder(const Folder&) = delete;
  Folder& operator=(const Folder&) = delete;
  std::string operator/(const std::string& name) const { return (path_ / name).string(); }
  std::string text() const { return path_.string(); }
  std::string write(const std::string& name, const std::string& bytes) const {
    fs::create_directories((path_ / name).parent_path());
    std::ofstream{path_ / name, std::ios::binary} << bytes;
    return *this / name;
  }

 private:
  fs::path path_;
};

inline std::string read_bytes(const std::string& path) {
  std::ifstream in{path, std::ios::binary};
  return {std::istreambuf_iterator<char>{in}, {}};
}

/// A row as text: "[1, \"a\"]", so that rows of any types compare.
inline std::string row_text(const arrow::RecordBatch& rows, std::int64_t row) {
  std::string text;
  for (const auto& column : rows.columns()) {
    const auto scalar = column->GetScalar(row).ValueOrDie();
    text += (text.empty() ? "" : "|") + (scalar->is_valid ? scalar->ToString() : "null");
  }
  return text;
}

struct Reading {
  std::vector<std::string> rows;
  std::vector<std::int64_t> blocks;  ///< source rows of each block
  std::vector<BadRow> bad;
  std::int64_t num_source_rows = 0;
};

inline ReadOptions small_blocks(std::int64_t rows = 3) {
  ReadOptions options;
  options.block_rows = rows;
  return options;
}

/// What is in a fragment from `first_row` on; bad rows are collected when `skip`.
inline Reading read(const Source& source, std::int64_t fragment, std::int64_t first_row, ReadOptions options, bool skip = false) {
  Reading reading;
  if (skip) options.on_bad_row = [&](const BadRow& bad) { reading.bad.push_back(bad); };
  const auto reader = source.open(fragment, first_row, options);
  auto next = first_row;
  while (auto block = reader->next()) {
    EXPECT_EQ(block->fragment, fragment);
    EXPECT_EQ(block->first_source_row, next);
    EXPECT_GT(block->num_source_rows, 0);
    EXPECT_LE(block->rows->num_rows(), block->num_source_rows);
    EXPECT_TRUE(block->rows->ValidateFull().ok());
    next += block->num_source_rows;
    reading.blocks.push_back(block->num_source_rows);
    reading.num_source_rows += block->num_source_rows;
    for (std::int64_t i = 0; i < block->rows->num_rows(); ++i) reading.rows.push_back(row_text(*block->rows, i));
  }
  EXPECT_FALSE(reader->next());  // the end stays the end
  return reading;
}

/// All of a source, fragment by fragment.
inline Reading read_all(const Source& source, ReadOptions options = small_blocks(), bool skip = false) {
  Reading all;
  for (std::size_t i = 0; i < source.fragments().size(); ++i) {
    auto one = read(source, static_cast<std::int64_t>(i), 0, options, skip);
    all.rows.insert(all.rows.end(), one.rows.begin(), one.rows.end());
    all.bad.insert(all.bad.end(), one.bad.begin(), one.bad.end());
    all.num_source_rows += one.num_source_rows;
  }
  return all;
}

/// Opened at every row, a fragment gives the tail of what it gives as a whole; its count is what is read; metadata agree.
inline void expect_positions_hold(const Source& source, bool skip = false) {
  for (std::size_t i = 0; i < source.fragments().size(); ++i) {
    const auto fragment = static_cast<std::int64_t>(i);
    const auto whole = read(source, fragment, 0, small_blocks(1), skip);
    EXPECT_EQ(source.count_rows(fragment), whole.num_source_rows);
    EXPECT_EQ(source.fragments()[i].num_rows.value_or(whole.num_source_rows), whole.num_source_rows);
    for (std::int64_t row = 0; row <= whole.num_source_rows; ++row) {
      const auto tail = read(source, fragment, row, small_blocks(), skip);
      EXPECT_EQ(tail.num_source_rows, whole.num_source_rows - row) << source.fragments()[i].path << " at " << row;
      if (skip) continue;  // rows are fewer then
      EXPECT_EQ(tail.rows, std::vector<std::string>(whole.rows.begin() + row, whole.rows.end())) << source.fragments()[i].path << " at " << row;
    }
  }
}

/// The text of the Failure that `act` throws, of code `code`.
template <class F>
std::string failure(Errc code, F&& act) {
  try {
    act();
  } catch (const Failure& caught) {
    EXPECT_EQ(name(caught.code()), name(code)) << caught.what();
    return caught.what();
  }
  ADD_FAILURE() << "no Failure";
  return "";
}

inline std::size_t open_files() {
  std::size_t count = 0;
  for ([[maybe_unused]] const auto& entry : fs::directory_iterator{"/proc/self/fd"}) ++count;
  return count;
}

/// Waits until no more files are open than that: Arrow's threads let go of theirs a moment after whoever asked.
inline std::size_t open_files_falling_to(std::size_t expected) {
  for (int look = 0; look < 500 && open_files() > expected; ++look) std::this_thread::sleep_for(std::chrono::milliseconds{10});
  return open_files();
}

}  // namespace troupe::testing
