#include "line_file.hpp"

#include "files.hpp"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <utility>

namespace troupe::detail {

namespace fs = std::filesystem;

LineFile::LineFile(fs::path path) : path_(std::move(path)) {
  std::error_code error;
  if (fs::exists(path_, error)) {
    const auto text = files::read_all(path_);
    const auto whole = text.rfind('\n') == std::string::npos ? 0 : text.rfind('\n') + 1;
    if (whole != text.size()) fs::resize_file(path_, whole, error);
    files::check(error, "truncate", path_);
  }
  fd_ = ::open(path_.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
  if (fd_ < 0) files::fail("open", path_, errno);
}

LineFile::~LineFile() {
  if (fd_ >= 0) ::close(fd_);
}

LineFile::LineFile(LineFile&& other) noexcept { *this = std::move(other); }

LineFile& LineFile::operator=(LineFile&& other) noexcept {
  std::swap(path_, other.path_);
  std::swap(fd_, other.fd_);
  std::swap(waiting_, other.waiting_);
  std::swap(begin_, other.begin_);
  std::swap(has_failed_, other.has_failed_);
  return *this;
}

void LineFile::append(std::string_view line) {
  waiting_ += line;
  waiting_ += '\n';
}

// What a server of files has forgotten meanwhile stays broken.
void LineFile::open_again() {
  const int fd = ::open(path_.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
  if (fd < 0) files::fail("open", path_, errno);
  ::close(std::exchange(fd_, fd));
}

void LineFile::flush() {
  if (fd_ < 0 || bytes_waiting() == 0) return;
  if (has_failed_) open_again();
  has_failed_ = true;
  while (bytes_waiting() > 0) {
    const auto written = ::write(fd_, waiting_.data() + begin_, bytes_waiting());
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) files::fail("write", path_, errno);
    begin_ += static_cast<std::size_t>(written);
  }
  has_failed_ = false;
  waiting_.clear();
  begin_ = 0;
}

void LineFile::sync() {
  if (fd_ >= 0 && ::fsync(fd_) != 0) files::fail("fsync", path_, errno);
}

}  // namespace troupe::detail
