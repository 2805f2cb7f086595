#pragma once

#include <filesystem>
#include <string>

namespace troupe::detail {

enum class Replace : bool { No, Yes };

/// Writes a whole file, durably, under a temporary name first; it is never seen half written or with wider permissions.
/// @param mode its permissions, as 0600
/// Throws Failure{AlreadyExists, StorageUnavailable}.
void write_file(const std::filesystem::path& path, const std::string& bytes, unsigned mode, Replace replace = Replace::No);

/// The whole file. Throws Failure{FileNotFound}.
[[nodiscard]] std::string read_small_file(const std::filesystem::path& path);

/// Throws Failure{InvalidConfig} when others than its owner may read or write it; Failure{FileNotFound}.
void must_be_private(const std::filesystem::path& path);

/// 32 random bytes as hexadecimal digits and a line end, as the file `token` has them.
[[nodiscard]] std::string make_token();
/// The file's 32 bytes. Throws Failure{FileNotFound, FileCorrupt, InvalidConfig}.
[[nodiscard]] std::string read_token(const std::filesystem::path& path);

}  // namespace troupe::detail
