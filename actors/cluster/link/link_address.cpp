#include "link_address.hpp"

#include <troupe/errors.hpp>

#include <charconv>

namespace troupe::detail {

HostPort parse_host_port(const std::string& text) {
  const auto wrong = [&]() -> Failure { return {Errc::InvalidConfig, "'" + text + "' is no address; write HOST:PORT, as 10.0.0.1:7077 or [fd00::1]:7077"}; };
  const auto colon = text.rfind(':');
  if (colon == std::string::npos || colon == 0) throw wrong();
  HostPort parts{text.substr(0, colon), 0};
  const auto* const begin = text.data() + colon + 1;
  const auto* const end = text.data() + text.size();
  const auto read = std::from_chars(begin, end, parts.port);
  if (begin == end || read.ec != std::errc{} || read.ptr != end) throw wrong();
  if (parts.host.front() == '[' && parts.host.back() == ']') {
    parts.host = parts.host.substr(1, parts.host.size() - 2);
  } else if (parts.host.find(':') != std::string::npos) {
    throw wrong();
  }
  if (parts.host.empty()) throw wrong();
  return parts;
}

std::optional<boost::asio::ip::address> literal_address(const std::string& host) {
  boost::system::error_code error;
  auto address = boost::asio::ip::make_address(host, error);
  if (error) return std::nullopt;
  return address;
}

bool is_loopback_host(const std::string& host) {
  const auto address = literal_address(host);
  return address ? address->is_loopback() : host == "localhost";
}

}  // namespace troupe::detail
