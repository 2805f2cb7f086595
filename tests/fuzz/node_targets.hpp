#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace troupe::fuzz {

/// What a cluster's node or head may send: a type of two bytes, then the message. Taken from either side; what is taken must be written again
/// as it was. A rank's message inside one is read too.
int node_message(const std::uint8_t* data, std::size_t size);

/// One of each, to begin from.
[[nodiscard]] std::vector<std::string> node_message_seeds();

}  // namespace troupe::fuzz
