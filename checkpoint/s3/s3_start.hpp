#pragma once

#include <troupe/s3.hpp>

#include <arrow/filesystem/s3fs.h>

namespace troupe {

/// Starts Amazon's SDK, once a process. Throws StoreFailure{Local}.
void start_s3_once(const S3Settings& settings);
/// The SDK crashes at exit unless it is shut down before its globals are destroyed. Those are made bit by bit, by first uses, so
/// this is called after them: what was registered last runs first.
void shut_down_at_exit();
[[nodiscard]] arrow::fs::S3Options options_for(const StoreUrl& url, const S3Settings& settings);

}  // namespace troupe
