#include "text_reader.hpp"

#include <arrow/buffer.h>
#include <arrow/record_batch.h>
#include <arrow/util/utf8.h>

#include <algorithm>
#include <cstring>

#include "../columns/arrow_errors.hpp"

namespace troupe::detail {

std::string problem_of(const TextFormat& format, const RecordChunk& chunk, std::size_t first, std::size_t last) {
  for (auto i = first; i < last; ++i) {
    if (chunk.records[i].problem) return chunk.records[i].problem;
  }
  const auto text = bytes_of(chunk.bytes->data(), chunk, first, last);
  if (std::memchr(text.data(), '\0', text.size())) return "it has a NUL byte";
  if (format.utf8 && !arrow::util::ValidateUTF8(text)) return "it is not valid UTF-8";
  if (format.carriage_returns) return "";
  for (auto at = text.find('\r'); at != std::string_view::npos; at = text.find('\r', at + 1)) {
    if (at + 1 == text.size() || text[at + 1] != '\n') return "it has a carriage return inside";
  }
  return "";
}

std::optional<Block> TextReader::next() {
  RecordChunk chunk;
  while (records_->next(chunk)) {
    const auto size = static_cast<std::int64_t>(chunk.records.size());
    const auto begin = row_;
    row_ += size;
    const auto passed = std::clamp<std::int64_t>(std::max<std::int64_t>(first_row_, 0) - begin, 0, size);
    if (passed == size) continue;
    Batches batches;
    parse(chunk, static_cast<std::size_t>(passed), chunk.records.size(), batches);
    Block block;
    block.fragment = fragment_;
    block.first_source_row = begin + passed;
    block.num_source_rows = size - passed;
    if (batches.size() == 1) {
      block.rows = std::move(batches.front());
    } else {
      // Nothing is left when all rows are bad: the block still says that they were read.
      if (batches.empty()) batches.push_back(value(parser_->parse(chunk, 0, 0), file_, Errc::Internal));
      block.rows = value(arrow::ConcatenateRecordBatches(batches), file_, Errc::Internal);
    }
    return block;
  }
  return std::nullopt;
}

void TextReader::parse(const RecordChunk& chunk, std::size_t first, std::size_t last, Batches& rows) {
  auto why = problem_of(format_, chunk, first, last);
  if (why.empty()) {
    auto parsed = parser_->parse(chunk, first, last);
    if (parsed.ok()) {
      rows.push_back(std::move(parsed).ValueUnsafe());
      return;
    }
    if (parsed.status().IsOutOfMemory()) fail(parsed.status(), file_, Errc::OutOfMemory);
    why = short_text(parsed.status().message());
  }
  if (last - first == 1) return bad_row(chunk.records[first], why);
  const auto middle = first + (last - first) / 2;
  parse(chunk, first, middle, rows);
  parse(chunk, middle, last, rows);
}

void TextReader::bad_row(const Record& record, const std::string& why) {
  if (!first_line_) first_line_ = lines_before_();
  const BadRow bad{file_ + ", line " + std::to_string(*first_line_ + record.line + 1), why};
  if (!on_bad_row_) throw Failure{Errc::DataMalformed, bad.where + ": " + bad.why};
  on_bad_row_(bad);
}

}  // namespace troupe::detail
