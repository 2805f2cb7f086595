#include "record_splitter.hpp"

#include <arrow/buffer.h>
#include <arrow/io/interfaces.h>

#include <algorithm>
#include <cstring>

#include "../columns/arrow_errors.hpp"

namespace troupe::detail {

namespace {

bool blank(const std::uint8_t* begin, std::int64_t size) {
  return std::all_of(begin, begin + size, [](std::uint8_t c) { return c == ' ' || c == '\t' || c == '\r'; });
}

}  // namespace

RecordSplitter::RecordSplitter(std::shared_ptr<arrow::io::InputStream> input, std::string name, std::int64_t begin, std::int64_t end, const SplitOptions& options)
    : input_(std::move(input)), name_(std::move(name)), end_(end), options_(options), offset_(begin == 0 ? 0 : begin - 1), counting_(begin == 0), discarding_(begin > 0) {}

bool RecordSplitter::next(RecordChunk& chunk) {
  chunk.bytes.reset();
  chunk.records.clear();
  while (true) {
    if (!discarding_ && past_end()) break;
    if (const auto end = find_end(scanned_); end.at) {
      const auto stop = end.at - buffer_->data();
      if (discarding_) {
        discarding_ = false;
        open_lines_ = 0;
        begin_ = scanned_ = stop + 1;
        if (counting_) ++line_;
        counting_ = true;
        continue;
      }
      end_record(chunk, stop - begin_, end.problem, open_lines_ + end.inner_lines);
      begin_ = scanned_ = stop + 1;
      open_lines_ = 0;
      if (static_cast<std::int64_t>(chunk.records.size()) >= options_.max_records) break;
      continue;
    }
    if (input_ended_) {
      // The last line has no line end.
      if (!discarding_ && begin_ < size_) {
        const bool open = options_.quotes == SplitOptions::Quotes::Lines && state_ == State::Quoted;
        end_record(chunk, size_ - begin_, open ? "a quote is not closed" : nullptr, open_lines_);
      }
      begin_ = scanned_ = size_;
      break;
    }
    if (!chunk.records.empty()) break;  // the next record goes on in another buffer
    if (!discarding_ && size_ - begin_ > options_.max_record_bytes) {
      chunk.records.push_back({0, 0, line_, "it is longer than max_line_bytes allows"});
      discarding_ = true;
      state_ = State::FieldStart;
      line_ += open_lines_;
      begin_ = scanned_ = size_;
      break;
    }
    refill();
  }
  if (chunk.records.empty()) return false;
  chunk.bytes = buffer_;
  return true;
}

void RecordSplitter::end_record(RecordChunk& chunk, std::int64_t size, const char* problem, std::int64_t inner_lines) {
  const auto* const text = buffer_->data() + begin_;
  const auto line = line_;
  line_ += 1 + inner_lines;
  if (size > 0 && text[size - 1] == '\r') --size;
  if (size == 0 && options_.drop_empty) return;
  if (options_.drop_blank && blank(text, size)) return;
  if (size > options_.max_record_bytes) problem = "it is longer than max_line_bytes allows";
  if (!problem && options_.quotes == SplitOptions::Quotes::OneLine && unclosed(begin_, size)) problem = "a quote is not closed";
  chunk.records.push_back({begin_, size, line, problem});
}

RecordSplitter::LineEnd RecordSplitter::find_end(std::int64_t from) {
  if (!buffer_ || from >= size_) return {};
  if (options_.quotes == SplitOptions::Quotes::Lines && !discarding_) return find_quoted_end(from);
  const auto* const data = buffer_->data();
  const auto* const at = static_cast<const std::uint8_t*>(std::memchr(data + from, '\n', static_cast<std::size_t>(size_ - from)));
  if (!at) scanned_ = size_;
  return {at, nullptr, 0};
}

RecordSplitter::State RecordSplitter::step(State state, std::uint8_t c) const {
  if (state == State::Quoted) return c == static_cast<std::uint8_t>(options_.quote) ? State::QuoteInQuoted : State::Quoted;
  if (c == static_cast<std::uint8_t>(options_.quote) && state != State::Field) return State::Quoted;  // opens a value, or is the second of two
  return c == static_cast<std::uint8_t>(options_.delimiter) ? State::FieldStart : State::Field;
}

RecordSplitter::LineEnd RecordSplitter::find_quoted_end(std::int64_t from) {
  const auto* const data = buffer_->data();
  std::int64_t inner = 0;
  for (auto at = from; at < size_; ++at) {
    if (data[at] == '\n') {
      // A quote that is never closed must not take the rest of the file with it.
      if (state_ != State::Quoted || at - begin_ > options_.max_record_bytes) {
        state_ = State::FieldStart;
        return {data + at, nullptr, inner};
      }
      ++inner;
    }
    state_ = step(state_, data[at]);
  }
  open_lines_ += inner;
  scanned_ = size_;
  return {};
}

bool RecordSplitter::unclosed(std::int64_t begin, std::int64_t size) const {
  const auto* const text = buffer_->data() + begin;
  if (!std::memchr(text, options_.quote, static_cast<std::size_t>(size))) return false;
  auto state = State::FieldStart;
  for (std::int64_t i = 0; i < size; ++i) state = step(state, text[i]);
  return state == State::Quoted;
}

/// Moves the record under way to the front of a new buffer (chunks keep the old one) and reads behind it.
bool RecordSplitter::refill() {
  const auto kept = discarding_ ? 0 : size_ - begin_;
  const bool first = !buffer_;
  auto fresh = value(arrow::AllocateResizableBuffer(kept + options_.buffer_bytes), name_, Errc::OutOfMemory);
  if (kept > 0) std::memcpy(fresh->mutable_data(), buffer_->data() + begin_, static_cast<std::size_t>(kept));
  offset_ += discarding_ ? size_ : begin_;
  scanned_ = kept;
  begin_ = 0;
  buffer_ = std::move(fresh);
  const auto read = value(input_->Read(options_.buffer_bytes, buffer_->mutable_data() + kept), name_, Errc::FileCorrupt);
  size_ = kept + read;
  input_ended_ = read == 0;
  if (first && offset_ == 0) take_mark();
  return read > 0;
}

void RecordSplitter::take_mark() {
  const auto* const data = buffer_->data();
  if (size_ >= 3 && std::memcmp(data, "\xEF\xBB\xBF", 3) == 0) begin_ = scanned_ = mark_end_ = 3;
  if (size_ >= 2 && (std::memcmp(data, "\xFF\xFE", 2) == 0 || std::memcmp(data, "\xFE\xFF", 2) == 0)) {
    throw Failure{Errc::DataMalformed, name_ + " is UTF-16; convert it to UTF-8"};
  }
}

}  // namespace troupe::detail
