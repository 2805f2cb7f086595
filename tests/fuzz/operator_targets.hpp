#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace troupe::fuzz {

/// Two bytes of type and a packet's bytes: a head answers them as an operator's request, an operator reads them as a reply. Traps when anything but a
/// refusal comes of bytes that are no request, or what is read does not survive being written again.
int operator_message(const std::uint8_t* data, std::size_t size);
[[nodiscard]] std::vector<std::string> operator_message_seeds();
/// A list of hosts, as in SLURM_JOB_NODELIST.
int host_list(const std::uint8_t* data, std::size_t size);

}  // namespace troupe::fuzz
