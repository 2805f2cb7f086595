#include "arrow_errors.hpp"

#include <arrow/util/io_util.h>

#include <cerrno>

namespace troupe::detail {

std::string short_text(const std::string& text) {
  constexpr std::size_t limit = 300;
  std::string out;
  for (const char c : text.substr(0, limit)) out += static_cast<unsigned char>(c) < 0x20 || c == 0x7f ? ' ' : c;
  if (text.size() > limit) {
    while (!out.empty() && (static_cast<unsigned char>(out.back()) & 0xC0) == 0x80) out.pop_back();  // no half of a character
    if (!out.empty() && static_cast<unsigned char>(out.back()) >= 0xC0) out.pop_back();
    out += "…";
  }
  return out;
}

void fail(const arrow::Status& status, const std::string& where, Errc otherwise) {
  auto code = otherwise;
  if (const int error = arrow::internal::ErrnoFromStatus(status); error == ENOENT || error == ENOTDIR) {
    code = Errc::FileNotFound;
  } else if (error != 0) {
    code = Errc::StorageUnavailable;
  } else if (status.IsIOError() && status.message().find("AWS Error") != std::string::npos) {
    code = Errc::StorageUnavailable;  // the network's or the store's fault: the data may be fine
  } else if (status.IsOutOfMemory()) {
    code = Errc::OutOfMemory;
  } else if (status.IsNotImplemented() && otherwise != Errc::InvalidArgument) {  // so Arrow also calls a function's wrong types
    code = Errc::Unsupported;
  }
  throw Failure{code, where + ": " + short_text(status.message())};
}

}  // namespace troupe::detail
