#include "arrow_check.hpp"

namespace troupe::detail {

void throw_status(const arrow::Status& status, const std::string& what) {
  Errc code = Errc::DataMalformed;
  if (status.IsOutOfMemory()) code = Errc::OutOfMemory;
  if (status.IsIOError()) code = Errc::StorageUnavailable;
  if (status.IsNotImplemented()) code = Errc::Unsupported;
  throw Failure{code, what + ": " + status.message()};
}

}  // namespace troupe::detail
