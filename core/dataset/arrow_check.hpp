#pragma once

#include <arrow/result.h>
#include <arrow/status.h>

#include <troupe/errors.hpp>

#include <string>
#include <utility>

namespace troupe::detail {

[[noreturn]] void throw_status(const arrow::Status& status, const std::string& what);

/// Arrow's errors as ours; `what` says what was tried.
inline void check(const arrow::Status& status, const std::string& what) {
  if (!status.ok()) throw_status(status, what);
}
template <typename T>
T check(arrow::Result<T> result, const std::string& what) {
  if (!result.ok()) throw_status(result.status(), what);
  return std::move(result).ValueUnsafe();
}

}  // namespace troupe::detail
