#pragma once

#include <filesystem>
#include <string>
#include <string_view>

// Few calls on files that name the path when they fail, all with Failure{StorageUnavailable}.

namespace troupe::files {

/// Throws Failure{StorageUnavailable, "cannot <what> <path>: <errno's text>"}.
[[noreturn]] void fail(const std::string& what, const std::filesystem::path& path, int error);
void check(const std::error_code& error, const std::string& what, const std::filesystem::path& path);

void make_directories(const std::filesystem::path& path);
void sync(const std::filesystem::path& file_or_directory);
void write_all(int fd, std::string_view bytes, const std::filesystem::path& path);
/// Makes or replaces `path`: written under another name, fsynced, renamed, its directory fsynced.
void write_atomically(const std::filesystem::path& path, std::string_view bytes);
[[nodiscard]] std::string read_all(const std::filesystem::path& path);
void rename(const std::filesystem::path& from, const std::filesystem::path& to);

}  // namespace troupe::files
