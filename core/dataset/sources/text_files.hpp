#pragma once

#include <arrow/type_fwd.h>

#include <troupe/dataset/sources.hpp>

#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "files.hpp"
#include "record_splitter.hpp"

namespace troupe::detail {

/// Makes rows of records. One per reader.
class RecordParser {
 public:
  virtual ~RecordParser() = default;
  /// Records [first, last) of the chunk, none of which has a problem, as so many rows: or fails when one of them cannot be a row, and its text says why.
  [[nodiscard]] virtual arrow::Result<std::shared_ptr<arrow::RecordBatch>> parse(const RecordChunk& chunk, std::size_t first, std::size_t last) = 0;
};

/// What a format says of its lines.
struct TextFormat {
  std::string name;                    ///< with what decides rows, for fingerprints: "csv ,"
  std::vector<std::string> extensions; ///< without those of compression
  SplitOptions split;
  bool header = false;                 ///< the first record of each file is no row
  bool utf8 = true;                    ///< bytes that are not are a problem
  bool carriage_returns = false;       ///< may stand inside a record
};

/// Files of lines, cut into ranges of bytes. Formats derive from it.
class TextFiles : public Source, public std::enable_shared_from_this<TextFiles> {
 public:
  TextFiles(const Paths& paths, const FileOptions& files, const LineOptions& lines, TextFormat format);

  const std::shared_ptr<arrow::Schema>& schema() const override { return schema_; }
  const std::vector<Fragment>& fragments() const override { return fragments_; }
  std::unique_ptr<FragmentReader> open(std::int64_t fragment, std::int64_t first_row, const ReadOptions& options) const override;
  std::int64_t count_rows(std::int64_t fragment) const override;
  std::string fingerprint() const override;

 protected:
  /// For columns `columns` of the schema, in this order (none: all).
  [[nodiscard]] virtual std::unique_ptr<RecordParser> parser(const std::vector<std::string>& columns) const = 0;
  /// Throws Failure{DataMalformed} when a file's header is another than the data set's. Told once per file.
  virtual void check_header(const std::string& /*header*/, const DataFile& /*file*/) const {}

  /// The first records of the first file that has any, at most `bytes`: what schemas are inferred from.
  struct Head {
    const DataFile* file = nullptr;  ///< nothing: all files are empty
    RecordChunk chunk;
  };
  [[nodiscard]] Head head(std::int64_t bytes) const;

  FileSet files_;
  TextFormat format_;
  std::shared_ptr<arrow::Schema> schema_;  ///< set by the format's constructor

 private:
  friend class TextReader;
  struct Range {
    std::size_t file = 0;
    std::int64_t begin = 0;
    std::int64_t end = -1;  ///< -1: to the file's end
  };
  [[nodiscard]] std::unique_ptr<RecordSplitter> splitter(const Range& range, const SplitOptions& options) const;
  [[nodiscard]] SplitOptions split_options(const Range& range) const;
  void check_header_of(std::size_t file) const;
  /// How many lines of the file end before byte `begin` or the line under way there.
  [[nodiscard]] std::int64_t lines_before(const Range& range) const;

  std::vector<Fragment> fragments_;
  std::vector<Range> ranges_;
  mutable std::mutex mutex_;
  mutable std::vector<bool> header_checked_;  ///< by file
};

/// Why the records cannot be parsed as they are, or nothing: a problem of one, a NUL byte, a carriage return, bytes that are no UTF-8.
[[nodiscard]] std::string problem_of(const TextFormat& format, const RecordChunk& chunk, std::size_t first, std::size_t last);

/// Bytes of records [first, last), with the line ends between them, without the last one's.
[[nodiscard]] inline std::string_view bytes_of(const std::uint8_t* data, const RecordChunk& chunk, std::size_t first, std::size_t last) {
  const auto begin = chunk.records[first].begin;
  const auto& end = chunk.records[last - 1];
  return {reinterpret_cast<const char*>(data) + begin, static_cast<std::size_t>(end.begin + end.size - begin)};
}

}  // namespace troupe::detail
