#include "npy_header.hpp"

#include <arrow/type.h>

#include <troupe/errors.hpp>

#include <limits>

#include "../columns/arrow_errors.hpp"

namespace troupe::detail {

namespace {

/// The header is a Python literal: {'descr': '<i8', 'fortran_order': False, 'shape': (3, 4), }
class Literal {
 public:
  Literal(std::string_view text, const std::string& name) : text_(text), name_(name) {}

  [[noreturn]] void fail(const std::string& why) const { throw Failure{Errc::FileCorrupt, name_ + ": its .npy header is broken: " + why}; }
  void spaces() {
    while (at_ < text_.size() && (text_[at_] == ' ' || text_[at_] == '\n')) ++at_;
  }
  bool take(char c) {
    spaces();
    if (at_ >= text_.size() || text_[at_] != c) return false;
    ++at_;
    return true;
  }
  void expect(char c) {
    if (!take(c)) fail(std::string{"'"} + c + "' is missing at byte " + std::to_string(at_));
  }
  std::string string() {
    expect('\'');
    const auto end = text_.find('\'', at_);
    if (end == std::string_view::npos) fail("a string does not end");
    const auto word = std::string{text_.substr(at_, end - at_)};
    at_ = end + 1;
    return word;
  }
  bool boolean() {
    spaces();
    for (const auto& [word, value] : {std::pair{std::string_view{"True"}, true}, {std::string_view{"False"}, false}}) {
      if (!text_.substr(at_).starts_with(word)) continue;
      at_ += word.size();
      return value;
    }
    fail("fortran_order is neither True nor False");
  }
  std::int64_t number() {
    spaces();
    std::int64_t value = 0;
    const auto begin = at_;
    for (; at_ < text_.size() && text_[at_] >= '0' && text_[at_] <= '9'; ++at_) {
      if (value > (std::numeric_limits<std::int64_t>::max() - 9) / 10) fail("an axis is too long");
      value = value * 10 + (text_[at_] - '0');
    }
    if (at_ == begin) fail("a number is missing in shape");
    return value;
  }
  std::vector<std::int64_t> tuple() {
    std::vector<std::int64_t> numbers;
    expect('(');
    while (!take(')')) {
      numbers.push_back(number());
      if (numbers.size() > 32) fail("it has more than 32 axes");
      if (take(')')) break;
      expect(',');
    }
    return numbers;
  }

 private:
  std::string_view text_;
  const std::string& name_;
  std::size_t at_ = 0;
};

std::shared_ptr<arrow::DataType> type_of(const std::string& descr, const std::string& name) {
  static const std::vector<std::pair<std::string, std::shared_ptr<arrow::DataType>>> known{
      {"<i8", arrow::int64()}, {"<i4", arrow::int32()}, {"<i2", arrow::int16()}, {"|i1", arrow::int8()}, {"<u8", arrow::uint64()}, {"<u4", arrow::uint32()},
      {"<u2", arrow::uint16()}, {"|u1", arrow::uint8()}, {"<f8", arrow::float64()}, {"<f4", arrow::float32()}, {"<f2", arrow::float16()}};
  for (const auto& [code, type] : known) {
    if (code == descr) return type;
  }
  throw Failure{Errc::Unsupported, name + " holds '" + short_text(descr) + "'; numbers in little-endian order are read: i1 to i8, u1 to u8, f2 to f8"};
}

}  // namespace

NpyHeader parse_npy_header(std::string_view begin, std::int64_t file_bytes, const std::string& name) {
  constexpr std::string_view magic{"\x93NUMPY", 6};
  if (!begin.starts_with(magic) || begin.size() < 12) throw Failure{Errc::FileCorrupt, name + " is no .npy file"};
  const auto byte = [&](std::size_t i) { return static_cast<std::size_t>(static_cast<unsigned char>(begin[i])); };
  const std::size_t prefix = begin[6] == 1 ? 10 : 12;
  const auto length = begin[6] == 1 ? byte(8) | byte(9) << 8 : byte(8) | byte(9) << 8 | byte(10) << 16 | byte(11) << 24;
  if (prefix + length > begin.size()) throw Failure{Errc::FileCorrupt, name + ": its .npy header is longer than the file, or than " + std::to_string(kMaxNpyHeaderBytes) + " bytes"};
  Literal text{begin.substr(prefix, length), name};
  NpyHeader header;
  text.expect('{');
  bool fortran = false;
  while (!text.take('}')) {
    const auto key = text.string();
    text.expect(':');
    if (key == "descr") {
      header.type = type_of(text.string(), name);
    } else if (key == "fortran_order") {
      fortran = text.boolean();
    } else if (key == "shape") {
      header.shape = text.tuple();
    } else {
      text.fail("unknown key '" + short_text(key) + "'");
    }
    if (!text.take(',')) {
      text.expect('}');
      break;
    }
  }
  if (!header.type) text.fail("descr is missing");
  if (header.shape.empty()) throw Failure{Errc::Unsupported, name + " holds a single number, not rows"};
  if (fortran && header.shape.size() > 1) throw Failure{Errc::Unsupported, name + " is in Fortran order; write it in C order"};
  header.data_begin = static_cast<std::int64_t>(prefix + length);
  const auto width = header.type->byte_width();
  const auto limit = (file_bytes - header.data_begin) / width;  // numbers that the file can hold
  std::int64_t all = 1;
  for (std::size_t i = 0; i < header.shape.size(); ++i) {
    const auto axis = header.shape[i];
    if (axis != 0 && all > limit / axis) text.fail("the file is shorter than its shape says");
    all *= axis;
    if (i > 0) header.row_width *= axis > 0 && header.row_width > limit / axis ? limit + 1 : axis;
    if (header.row_width > std::numeric_limits<std::int32_t>::max()) throw Failure{Errc::Unsupported, name + ": a row of it has more than 2^31 numbers"};
  }
  if (header.shape[0] > 0 && header.row_width == 0) throw Failure{Errc::Unsupported, name + " holds rows without numbers"};
  return header;
}

}  // namespace troupe::detail
