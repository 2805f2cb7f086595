#pragma once

#include "text_files.hpp"

namespace troupe::detail {

/// The rows of one range of a file of lines. Where a chunk does not parse, halves of it are tried until each record that cannot be a row is alone.
class TextReader final : public FragmentReader {
 public:
  /// @param lines_before counts the file's lines before the range; asked only when a message needs a line number.
  TextReader(std::unique_ptr<RecordSplitter> records, TextFormat format, std::unique_ptr<RecordParser> parser, std::string file, std::int64_t fragment, std::int64_t first_row,
             bool skip_header, std::function<void(const BadRow&)> on_bad_row, std::function<std::int64_t()> lines_before)
      : records_(std::move(records)), format_(std::move(format)), parser_(std::move(parser)), file_(std::move(file)), fragment_(fragment), first_row_(first_row),
        row_(skip_header ? -1 : 0), on_bad_row_(std::move(on_bad_row)), lines_before_(std::move(lines_before)) {}

  std::optional<Block> next() override;

 private:
  using Batches = std::vector<std::shared_ptr<arrow::RecordBatch>>;
  void parse(const RecordChunk& chunk, std::size_t first, std::size_t last, Batches& rows);
  void bad_row(const Record& record, const std::string& why);

  std::unique_ptr<RecordSplitter> records_;
  TextFormat format_;
  std::unique_ptr<RecordParser> parser_;
  std::string file_;
  std::int64_t fragment_;
  std::int64_t first_row_;
  std::int64_t row_;  ///< of the next record; the header is -1
  std::function<void(const BadRow&)> on_bad_row_;
  std::function<std::int64_t()> lines_before_;
  std::optional<std::int64_t> first_line_;
};

}  // namespace troupe::detail
