#pragma once

#include <troupe/link.hpp>
#include <troupe/session.hpp>

#include <optional>
#include <string>

namespace troupe::detail {

/// How a group tells a program that it is started as a rank: one environment variable.
inline constexpr const char* rank_start_variable = "TROUPE_RANK_LINK";

struct RankStart {
  int link_fd = -1;  ///< connected to the group's process
  int seat_fd = -1;  ///< brings the memory of each attempt's SharedGroup
  std::int64_t parent = 0;
  Hello hello;
};

/// The variable's value. `hello.program` is not part of it.
[[nodiscard]] std::string to_text(const RankStart& start);

/// Reads and removes the variable, so that programs which the rank starts are no ranks; nothing when it is not set.
/// A variable that is set but does not fit ends the process with a message.
[[nodiscard]] std::optional<RankStart> take_rank_start();

/// Runs one rank after another, as they are ordered, and ends the process when the link closes or the group's process is gone.
[[noreturn]] void run_rank_process(const RankStart& start, const TrainFunctions& functions, const DatasetFunctions& datasets);

/// Which file a program is: device, inode, size and time of its executable.
[[nodiscard]] std::string program_identity(const std::string& path = "/proc/self/exe");

}  // namespace troupe::detail
