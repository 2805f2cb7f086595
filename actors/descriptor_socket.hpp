#pragma once

#include "child_process.hpp"

#include <cstdint>
#include <utility>

// Descriptors go from process to process beside the link, over a socket that keeps messages apart.

namespace troupe::detail {

/// Both ends. Throws Failure{StartFailed}.
[[nodiscard]] std::pair<Fd, Fd> make_descriptor_sockets();

/// Sends a duplicate of `descriptor` as number `attempt`. False when the other end is gone.
[[nodiscard]] bool send_descriptor(int socket, int descriptor, std::uint64_t attempt) noexcept;

/// The descriptor that was sent as number `attempt`, which must have been sent already; older ones are closed.
/// Throws Failure{ProtocolError}.
[[nodiscard]] Fd receive_descriptor(int socket, std::uint64_t attempt);

}  // namespace troupe::detail
