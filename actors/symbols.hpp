#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace troupe::detail {

/// What lies at `addresses` of a process whose /proc/PID/maps is `maps`, as "Model::forward(at::Tensor)+0x1c in train+0x5e2f" or
/// "train+0x5e2f" (for addr2line) or "0x7f…". Names come from the symbol tables of the files on disk, so the process may be gone.
/// Never throws on what the files or the maps hold: then there are no names.
/// @param calls the addresses are return addresses: the name is that of the call before.
[[nodiscard]] std::vector<std::string> symbolize(std::string_view maps, std::span<const std::uint64_t> addresses, bool calls = true);

}  // namespace troupe::detail
