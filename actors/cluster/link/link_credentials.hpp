#pragma once

#include "tls_engine.hpp"

#include <chrono>
#include <memory>
#include <string>

namespace troupe::detail {

/// With what one end of a link shows who it is: certificates and the token, the token alone, or nothing.
struct LinkCredentials {
  std::shared_ptr<TlsContext> tls;  ///< nullptr: without TLS
  std::string token;                ///< empty: none
  ClusterIdentity plain;            ///< without TLS: what it says it is
  bool may_leave_host = false;      ///< it has TLS, or the user spelled `insecure` out

  [[nodiscard]] const ClusterIdentity& own() const { return tls ? tls->own() : plain; }
};

/// Reads and checks. Without TLS beyond loopback it throws Failure{InvalidConfig}, unless `security.insecure`.
/// @param host where it listens or connects to
[[nodiscard]] LinkCredentials credentials_of(const ClusterSecurity& security, ClusterRole role, const std::string& host);

/// Warns on stderr, at most once a minute in this process, that a link beyond loopback has no TLS.
void warn_insecure();
/// Whether `warn_insecure` is to be called for it, again and again.
[[nodiscard]] bool is_insecure(const LinkCredentials& credentials, const std::string& host);

}  // namespace troupe::detail
