#pragma once

#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>

namespace troupe {

/// What went wrong, as a stable number. Append only: the numbers are written to files and travel between processes.
enum class Errc : std::uint16_t {
  Ok = 0,
  InvalidArgument = 1,      ///< a value the caller passed is out of range or contradicts another
  InvalidConfig = 2,        ///< a configuration key is unknown, unused, of the wrong type or out of range
  FileNotFound = 3,         ///< a file or directory does not exist
  FileCorrupt = 4,          ///< a file's bytes do not say what its format demands
  StorageUnavailable = 5,   ///< a path cannot be written, is full, or the device failed
  DataMalformed = 6,        ///< a row of a user's data set cannot be read (file and line in the text)
  TrainFunctionFailed = 7,  ///< the user's train function threw
  RankExited = 8,           ///< a rank's process ended with an exit code before its train function returned
  RankKilled = 9,           ///< a rank's process ended by a signal
  DeadlinePassed = 10,      ///< somebody did not come in time (who is in the text)
  Aborted = 11,             ///< the group or run was ended from outside
  CollectiveMismatch = 12,  ///< ranks called different collectives (each rank's call is in the text)
  ProtocolError = 13,       ///< a peer sent bytes that are no valid frame, or speaks another version
  StartFailed = 14,         ///< a rank could not be started (limits, missing program)
  Cancelled = 15,           ///< stopped on request
  NotFound = 16,            ///< a named thing (run, checkpoint, train function) does not exist
  AlreadyExists = 17,       ///< a run or file is already there and may not be replaced
  Unsupported = 18,         ///< a valid request that this build or machine cannot serve
  Internal = 19,            ///< a bug in Troupe
  OutOfMemory = 20,         ///< memory of the host or a device ran out, or the kernel killed a rank because it did
  DeviceFailed = 21,        ///< a GPU call failed such that the process cannot use the device any more
  DeviceLost = 22,          ///< a GPU reported damaged memory, or is gone
  NetworkFailed = 23,       ///< the connection between ranks' devices broke
  NodeLost = 24,            ///< a cluster's node was not heard of any more, or left
};

/// A short sentence a user can act on.
[[nodiscard]] std::string_view explain(Errc code) noexcept;
/// The enumerator's name, "InvalidConfig".
[[nodiscard]] std::string_view name(Errc code) noexcept;

/// Thrown when work cannot go on. `what()` says what, where (file, line, key, rank) and what to do.
class Failure : public std::runtime_error {
 public:
  Failure(Errc code, const std::string& text) : std::runtime_error(text), code_(code) {}
  [[nodiscard]] Errc code() const noexcept { return code_; }

 private:
  Errc code_;
};

/// The result of something that may fail as a matter of course: a peer silent, a deadline passed.
/// Empty means success.
class [[nodiscard]] Outcome {
 public:
  Outcome() = default;
  Outcome(Errc code, std::string text) : code_(code), text_(std::move(text)) {}
  [[nodiscard]] bool ok() const noexcept { return code_ == Errc::Ok; }
  explicit operator bool() const noexcept { return ok(); }
  [[nodiscard]] Errc code() const noexcept { return code_; }
  [[nodiscard]] const std::string& text() const noexcept { return text_; }
  /// Turns a failure into an exception.
  void or_throw() const {
    if (!ok()) throw Failure{code_, text_};
  }

 private:
  Errc code_ = Errc::Ok;
  std::string text_;
};

}  // namespace troupe
