#pragma once

#include <boost/asio/ip/address.hpp>

#include <cstdint>
#include <optional>
#include <string>

namespace troupe::detail {

/// "HOST:PORT" or "[IPV6]:PORT" in its parts.
struct HostPort {
  std::string host;
  std::uint16_t port = 0;
};
/// Throws Failure{InvalidConfig}.
[[nodiscard]] HostPort parse_host_port(const std::string& text);

/// Its address, when the host is one already.
[[nodiscard]] std::optional<boost::asio::ip::address> literal_address(const std::string& host);
/// Whether it can only mean this host: an address of loopback, or "localhost".
[[nodiscard]] bool is_loopback_host(const std::string& host);

}  // namespace troupe::detail
