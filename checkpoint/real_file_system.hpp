#pragma once

#include <troupe/file_system.hpp>

#include <memory>

namespace troupe::detail {

/// What some machines lack; true: it is used where it is there. Tests switch it off to go the ways of those machines.
struct RealFileSystemOptions {
  bool direct = true;    ///< O_DIRECT
  bool uring = true;     ///< io_uring
  bool exchange = true;  ///< RENAME_EXCHANGE
};

[[nodiscard]] std::unique_ptr<FileSystem> make_real_file_system(RealFileSystemOptions options);

}  // namespace troupe::detail
