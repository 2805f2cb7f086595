#pragma once

#include <arrow/result.h>
#include <arrow/status.h>

#include <troupe/errors.hpp>

#include <string>
#include <utility>

namespace troupe::detail {

/// What Arrow says, on one line of at most 300 characters without control characters (it quotes whole rows).
[[nodiscard]] std::string short_text(const std::string& text);

/// Throws Failure{"<where>: <Arrow's text>"}: FileNotFound, OutOfMemory, StorageUnavailable and Unsupported by what Arrow says, else `otherwise`.
[[noreturn]] void fail(const arrow::Status& status, const std::string& where, Errc otherwise);
inline void check(const arrow::Status& status, const std::string& where, Errc otherwise) {
  if (!status.ok()) fail(status, where, otherwise);
}
template <class T>
[[nodiscard]] T value(arrow::Result<T> result, const std::string& where, Errc otherwise) {
  if (!result.ok()) fail(result.status(), where, otherwise);
  return std::move(result).ValueUnsafe();
}

}  // namespace troupe::detail
