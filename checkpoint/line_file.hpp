#pragma once

#include <cstddef>
#include <filesystem>
#include <string>
#include <string_view>

namespace troupe::detail {

/// A file of lines that is only ever appended to. Lines that the disk refuses stay in memory and go there with a later flush, in order and
/// without a gap; one that a full disk has torn is completed then.
///
/// One caller at a time. Errors: Failure{StorageUnavailable} naming the path.
class LineFile {
 public:
  LineFile() = default;
  /// Opens or makes it, and cuts off a last line that is torn.
  explicit LineFile(std::filesystem::path path);
  ~LineFile();
  LineFile(LineFile&& other) noexcept;
  LineFile& operator=(LineFile&& other) noexcept;

  /// It is in the file after `flush`. @param line without its end.
  void append(std::string_view line);
  void flush();
  /// Makes what was flushed durable.
  void sync();
  /// Not in the file yet.
  [[nodiscard]] std::size_t bytes_waiting() const noexcept { return waiting_.size() - begin_; }

 private:
  void open_again();

  std::filesystem::path path_;
  int fd_ = -1;
  std::string waiting_;
  std::size_t begin_ = 0;  // of what is not written, in `waiting_`
  bool has_failed_ = false;
};

}  // namespace troupe::detail
