#pragma once

#include <arrow/io/type_fwd.h>
#include <arrow/type_fwd.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace troupe::detail {

/// One line, or with quoted line ends several, of a chunk: bytes [begin, begin + size) without the line end.
struct Record {
  std::int64_t begin = 0;
  std::int64_t size = 0;
  std::int64_t line = 0;        ///< of its first line, counted from 0 where reading began
  const char* problem = nullptr;  ///< why it cannot be a row (then it may have no bytes)
};

/// Records that lie one after another in one buffer.
struct RecordChunk {
  std::shared_ptr<arrow::Buffer> bytes;
  std::vector<Record> records;
};

struct SplitOptions {
  enum class Quotes : std::uint8_t {
    None,    ///< a quote is a character
    OneLine, ///< a quote that is open at the end of a line is a problem
    Lines,   ///< it holds the line end
  };
  Quotes quotes = Quotes::None;
  char quote = '"';
  char delimiter = ',';
  bool drop_empty = true;          ///< lines without a character are no records
  bool drop_blank = false;         ///< nor are those of spaces and tabs
  std::int64_t max_record_bytes = 16 << 20;
  std::int64_t buffer_bytes = 1 << 20;  ///< about as much is read, and held, at a time
  std::int64_t max_records = 4096;      ///< of a chunk
};

/// Cuts a stream of bytes into records at LF and CRLF; memory is bounded by `buffer_bytes` and the longest record that is allowed.
///
/// A byte range [begin, end) of a file has those lines that begin in it: it starts behind the line end that is at begin - 1 or later, and goes
/// on past `end` until the last line is whole.
class RecordSplitter {
 public:
  /// @param name in messages; errors of the stream are a Failure.
  /// @param begin of the range; `input` stands one byte before it, unless it is 0. @param end -1: to the stream's end.
  RecordSplitter(std::shared_ptr<arrow::io::InputStream> input, std::string name, std::int64_t begin, std::int64_t end, const SplitOptions& options);

  /// False at the end. A chunk holds at least one record.
  [[nodiscard]] bool next(RecordChunk& chunk);

  /// Lines that have ended so far.
  [[nodiscard]] std::int64_t num_lines() const noexcept { return line_; }

 private:
  struct LineEnd {
    const std::uint8_t* at = nullptr;  ///< of the LF; nullptr: not in the buffer
    const char* problem = nullptr;
    std::int64_t inner_lines = 0;      ///< line ends in quotes before it
  };
  enum class State : std::uint8_t { FieldStart, Field, Quoted, QuoteInQuoted };

  bool refill();
  void take_mark();
  LineEnd find_end(std::int64_t from);
  LineEnd find_quoted_end(std::int64_t from);
  State step(State state, std::uint8_t c) const;
  bool unclosed(std::int64_t begin, std::int64_t size) const;
  void end_record(RecordChunk& chunk, std::int64_t size, const char* problem, std::int64_t inner_lines);
  bool past_end() const { return end_ >= 0 && (offset_ + begin_ == mark_end_ ? 0 : offset_ + begin_) >= end_; }

  std::shared_ptr<arrow::io::InputStream> input_;
  std::string name_;
  std::int64_t end_;
  SplitOptions options_;

  std::shared_ptr<arrow::ResizableBuffer> buffer_;
  std::int64_t offset_;           ///< in the file, of the buffer's first byte
  std::int64_t size_ = 0;         ///< bytes in the buffer
  std::int64_t begin_ = 0;        ///< of the record under way
  std::int64_t scanned_ = 0;      ///< up to here no line end was found
  std::int64_t mark_end_ = -1;    ///< where the byte order mark ends: the first line begins with it
  std::int64_t line_ = 0;
  std::int64_t open_lines_ = 0;   ///< line ends inside the record under way
  State state_ = State::FieldStart;
  bool input_ended_ = false;
  bool counting_;                 ///< lines are those of the range, no longer the end of one before it
  bool discarding_;               ///< up to the next line end: the end of a line of the range before, or what is left of a record that is too long
};

}  // namespace troupe::detail
