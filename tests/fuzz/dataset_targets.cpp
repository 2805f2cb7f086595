#include "dataset_targets.hpp"

#include <arrow/array.h>
#include <arrow/filesystem/mockfs.h>
#include <arrow/record_batch.h>
#include <arrow/scalar.h>

#include <troupe/dataset/sources.hpp>
#include <troupe/errors.hpp>

#include <functional>
#include <string>

namespace troupe::fuzz {
namespace {

struct Reading {
  std::string rows;
  std::string bad;
  std::int64_t num_source_rows = 0;
};

/// Everything, or nothing where the file is refused.
std::optional<Reading> read_all(const Source& source, std::int64_t block_rows) {
  Reading all;
  ReadOptions options;
  options.block_rows = block_rows;
  options.on_bad_row = [&](const BadRow& bad) { all.bad += bad.where + ": " + bad.why + "\n"; };
  for (std::size_t i = 0; i < source.fragments().size(); ++i) {
    const auto fragment = static_cast<std::int64_t>(i);
    const auto reader = source.open(fragment, 0, options);
    std::int64_t rows = 0;
    while (const auto block = reader->next()) {
      if (!block->rows->ValidateFull().ok() || block->first_source_row != rows) __builtin_trap();
      rows += block->num_source_rows;
      for (std::int64_t row = 0; row < block->rows->num_rows(); ++row) {
        for (const auto& column : block->rows->columns()) all.rows += column->GetScalar(row).ValueOrDie()->ToString() + "|";
        all.rows += "\n";
      }
    }
    if (rows != source.count_rows(fragment)) __builtin_trap();
    all.num_source_rows += rows;
  }
  return all;
}

using Make = std::function<std::shared_ptr<const Source>(const FileOptions& files, std::int64_t fragment_bytes)>;

int read_in_many_ways(const std::uint8_t* data, std::size_t size, const Make& make) {
  const auto system = std::make_shared<arrow::fs::internal::MockFileSystem>(arrow::fs::kNoTime);
  if (!system->CreateFile("file", {reinterpret_cast<const char*>(data), size}).ok()) return 0;
  FileOptions files;
  files.file_system = system;
  std::optional<Reading> first;
  for (const auto& [bytes, block_rows] : {std::pair<std::int64_t, std::int64_t>{1 << 20, 1000}, {1 << 20, 1}, {7, 3}}) {
    try {
      const auto reading = read_all(*make(files, bytes), block_rows);
      if (!first) {
        first = reading;
      } else if (first->rows != reading->rows || first->bad != reading->bad || first->num_source_rows != reading->num_source_rows) {
        __builtin_trap();
      }
    } catch (const Failure&) {
      if (first) __builtin_trap();
      return 0;
    }
  }
  return 0;
}

LineOptions short_lines(std::int64_t fragment_bytes) {
  LineOptions lines;
  lines.fragment_bytes = fragment_bytes;
  lines.max_line_bytes = 200;
  return lines;
}

}  // namespace

int csv_file(const std::uint8_t* data, std::size_t size) {
  return read_in_many_ways(data, size, [](const FileOptions& files, std::int64_t bytes) {
    CsvOptions options;
    options.files = files;
    options.lines = short_lines(bytes);
    return csv_source("file", options);
  });
}

int csv_quoted_lines(const std::uint8_t* data, std::size_t size) {
  return read_in_many_ways(data, size, [](const FileOptions& files, std::int64_t bytes) {
    CsvOptions options;
    options.files = files;
    options.lines = short_lines(bytes);
    options.newlines_in_values = true;
    return csv_source("file", options);
  });
}

int json_lines_file(const std::uint8_t* data, std::size_t size) {
  return read_in_many_ways(data, size, [](const FileOptions& files, std::int64_t bytes) {
    JsonLinesOptions options;
    options.files = files;
    options.lines = short_lines(bytes);
    return json_lines_source("file", options);
  });
}

int text_file(const std::uint8_t* data, std::size_t size) {
  return read_in_many_ways(data, size, [](const FileOptions& files, std::int64_t bytes) {
    TextOptions options;
    options.files = files;
    options.lines = short_lines(bytes);
    return text_source("file", options);
  });
}

int npy_file(const std::uint8_t* data, std::size_t size) {
  return read_in_many_ways(data, size, [](const FileOptions& files, std::int64_t bytes) {
    NpyOptions options;
    options.files = files;
    options.fragment_bytes = bytes;
    return npy_source("file", options);
  });
}

int ipc_file(const std::uint8_t* data, std::size_t size) {
  return read_in_many_ways(data, size, [](const FileOptions& files, std::int64_t) { return ipc_source("file", files); });
}

const std::vector<DatasetTarget>& dataset_targets() {
  static const std::vector<DatasetTarget> all{{"csv_file", csv_file}, {"csv_quoted_lines", csv_quoted_lines}, {"json_lines_file", json_lines_file}, {"text_file", text_file}, {"npy_file", npy_file}, {"ipc_file", ipc_file}};
  return all;
}

}  // namespace troupe::fuzz
