#pragma once

#include <troupe/file_system.hpp>

#include <chrono>
#include <cstdint>

namespace troupe {

// Faults on purpose in a process that really trains (RunConfig::chaos); tests of this folder have finer means. From a call on
// `real_file_system()` gives a file system that breaks as told. For the whole process; threads: any.

/// Each write and sync of a file takes so much longer; 0: no longer.
void slow_storage(std::chrono::milliseconds each) noexcept;
/// The next `count` writes of files fail with Failure{StorageUnavailable}; 0: none.
void fail_storage(std::int64_t count) noexcept;

namespace detail {

/// `real`, or while there are faults a wrapper of it.
[[nodiscard]] FileSystem& with_storage_faults(FileSystem& real);

}  // namespace detail

}  // namespace troupe
