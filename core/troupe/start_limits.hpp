#pragma once

#include <troupe/errors.hpp>

#include <filesystem>
#include <string>
#include <system_error>
#include <thread>
#include <utility>

namespace troupe {

/// What may keep this process from starting a thread or another process (EAGAIN, ENOMEM), for the text of an error: each limit that is set,
/// what of it is in use where that is known, and how it is raised. Any thread.
/// @param root of the file systems proc and sys; tests have their own.
[[nodiscard]] std::string limits_on_starting(const std::filesystem::path& root = "/");

/// A std::thread that runs `body`. Throws Failure{StartFailed} that says for what it was needed, and the limits.
/// @param what "rank 3", "the run's disk work".
template <class Body>
[[nodiscard]] std::thread start_thread(const std::string& what, Body&& body) try {
  return std::thread{std::forward<Body>(body)};
} catch (const std::system_error& error) {
  throw Failure{Errc::StartFailed, "cannot start a thread for " + what + ": " + error.what() + "; " + limits_on_starting()};
}

/// Starts so many threads at once, and ends them: for libraries that do not survive a thread that cannot be started. Throws as `start_thread`.
void require_threads(int count, const std::string& what);

}  // namespace troupe
