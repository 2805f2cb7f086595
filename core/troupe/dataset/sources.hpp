#pragma once

#include <troupe/dataset/expression.hpp>
#include <troupe/dataset/source.hpp>

#include <cstdint>
#include <initializer_list>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace arrow {
class Table;
namespace fs {
class FileSystem;
}
}  // namespace arrow

namespace troupe {

/// Files to read. Each entry is a file, a directory (all of its files, also of those below it, except names that begin with '.' or '_'), a glob
/// ("data/*.parquet", "data/**/part-?.csv"; it names files), or one of these in an object store ("s3://bucket/data/*.parquet",
/// where '?' begins options as in `StoragePath`). Entries stay in their order; what one entry finds is sorted by name.
class Paths {
 public:
  Paths(const char* path) : all_{path} {}                             // NOLINT: all four are meant to be implicit
  Paths(std::string path) : all_{std::move(path)} {}                  // NOLINT
  Paths(std::vector<std::string> paths) : all_(std::move(paths)) {}   // NOLINT
  Paths(std::initializer_list<std::string> paths) : all_(paths) {}
  [[nodiscard]] const std::vector<std::string>& all() const noexcept { return all_; }

 private:
  std::vector<std::string> all_;
};

/// How files are found and opened.
struct FileOptions {
  /// Names that are taken from a directory end in one of these; empty: what the format is usually called, `{""}`: all.
  std::vector<std::string> extensions;
  /// Where the paths are; nothing: this machine's, or the object store that they name.
  std::shared_ptr<arrow::fs::FileSystem> file_system;
};

// Every function below looks at its files once: sizes, and what the format keeps about its rows; data is read by `Source::open` only.
// A file that is gone, or has another size or schema when it is opened, is a Failure: positions would no longer mean the same rows.
// Columns that are dictionary-encoded in files come as plain values. Throws Failure{FileNotFound, FileCorrupt, DataMalformed,
// InvalidArgument, StorageUnavailable} that names the file.

/// Fragments are row groups; ".parquet", ".pq".
struct ParquetOptions {
  FileOptions files;
  /// Row groups in which no row can meet it, by the statistics in their file, are left out; rows are not filtered.
  std::optional<Expression> filter;
};
[[nodiscard]] std::shared_ptr<const Source> parquet_source(const Paths& paths, ParquetOptions options = {});

/// Arrow IPC files and streams; fragments are record batches. ".arrow", ".arrows", ".feather", ".ipc".
[[nodiscard]] std::shared_ptr<const Source> ipc_source(const Paths& paths, FileOptions options = {});

/// Lines are cut into fragments of about `fragment_bytes`. Files that end in .gz, .bz2, .zst, .lz4 or .br are read through their
/// decompressor, each as one fragment. CRLF and LF end a line, a byte order mark is passed over, bytes must be UTF-8 without NUL.
struct LineOptions {
  std::int64_t fragment_bytes = 8 << 20;
  std::int64_t max_line_bytes = 16 << 20;  ///< a longer one is a bad row, and is never held in memory
};

/// The type of a column by name: bool, int8 … int64, uint8 … uint64, float, double, string, binary, large_string, large_binary,
/// date32, timestamp (µs), and list<T>.
using ColumnTypes = std::map<std::string, std::string>;

/// ".csv", ".tsv", ".txt", and these compressed.
struct CsvOptions {
  FileOptions files;
  LineOptions lines;
  char delimiter = ',';
  bool quoting = true;               ///< '"' around values, doubled inside them
  /// Quoted values may hold line ends. Each file is then one fragment, since only its beginning tells which quotes open.
  bool newlines_in_values = false;
  bool header = true;                ///< the first line of each file names its columns; all files must agree
  std::vector<std::string> column_names;  ///< where there is no header; empty: "f0", "f1", …
  /// Others are inferred from the first MiB of the first file: int64, double, bool, date, timestamp, else string.
  ColumnTypes column_types;
  std::vector<std::string> null_values{"", "NA", "N/A", "NULL", "null", "NaN", "nan"};  ///< of columns that are not strings
  bool strings_can_be_null = false;  ///< of string columns too

  /// Tab-separated values as GLUE and most corpora have them: a quote is a character like any other.
  [[nodiscard]] static CsvOptions tsv() {
    CsvOptions options;
    options.delimiter = '\t';
    options.quoting = false;
    return options;
  }
};
[[nodiscard]] std::shared_ptr<const Source> csv_source(const Paths& paths, CsvOptions options = {});

/// One JSON object a line; ".jsonl", ".ndjson", ".json", and these compressed.
struct JsonLinesOptions {
  FileOptions files;
  LineOptions lines;
  /// Others are inferred from the first MiB of the first file. Keys outside the schema are ignored, missing ones are null.
  ColumnTypes column_types;
};
[[nodiscard]] std::shared_ptr<const Source> json_lines_source(const Paths& paths, JsonLinesOptions options = {});

/// A line a row, in the column "text"; ".txt", ".text", and these compressed.
struct TextOptions {
  FileOptions files;
  LineOptions lines;
  bool drop_empty_lines = false;  ///< then they are no rows
};
[[nodiscard]] std::shared_ptr<const Source> text_source(const Paths& paths, TextOptions options = {});

/// A file a row: "path" (string) and "bytes" (binary). For images, audio, documents; decoding is a step of the pipeline. A file that
/// is gone or longer than `max_file_bytes` is a bad row.
struct BinaryFilesOptions {
  FileOptions files;                             ///< extensions: all
  std::int64_t max_file_bytes = 512 << 20;
  std::int64_t fragment_bytes = 16 << 20;        ///< of files that are read as one fragment
};
[[nodiscard]] std::shared_ptr<const Source> binary_files_source(const Paths& paths, BinaryFilesOptions options = {});

/// NumPy arrays (.npy): a row is an element along the first axis, in one column of numbers or of fixed-size lists (the other axes, flat).
struct NpyOptions {
  FileOptions files;
  std::string column = "data";
  std::int64_t fragment_bytes = 8 << 20;
};
[[nodiscard]] std::shared_ptr<const Source> npy_source(const Paths& paths, NpyOptions options = {});

/// A table in memory, in fragments of `fragment_rows`. Its fingerprint knows schema and number of rows, not the values.
[[nodiscard]] std::shared_ptr<const Source> table_source(std::shared_ptr<arrow::Table> table, std::int64_t fragment_rows = 65'536);

/// The numbers [0, num_rows) in the int64 column "id".
[[nodiscard]] std::shared_ptr<const Source> range_source(std::int64_t num_rows, std::int64_t fragment_rows = 65'536);

}  // namespace troupe
