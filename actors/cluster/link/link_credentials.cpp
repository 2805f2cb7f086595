#include "link_credentials.hpp"

#include "link_address.hpp"
#include "private_file.hpp"

#include <troupe/errors.hpp>

#include <atomic>
#include <cstdio>
#include <filesystem>

namespace troupe::detail {

namespace {

/// A directory with a token and no CA: for one host only, so that a lost ca.pem does not open a cluster.
bool has_token_only(const ClusterSecurity& security, const std::string& host) {
  std::error_code error;
  return is_loopback_host(host) && std::filesystem::exists(security.directory / "token", error) && !std::filesystem::exists(security.directory / "ca.pem", error);
}

}  // namespace

LinkCredentials credentials_of(const ClusterSecurity& security, ClusterRole role, const std::string& host) {
  LinkCredentials found;
  if (!security.directory.empty() && !has_token_only(security, host)) {
    found.tls = std::make_shared<TlsContext>(security, role);
    found.token = read_token(security.directory / "token");
    found.may_leave_host = true;
    if (const auto warning = expiry_warning(security); !warning.empty()) std::fprintf(stderr, "troupe: %s\n", warning.c_str());
    return found;
  }
  if (!is_loopback_host(host) && !security.insecure) {
    throw Failure{Errc::InvalidConfig, "without certificates '" + host +
                                           "' is refused: whoever reaches its port could give orders. Make certificates (troupe certs init, then issue), use 127.0.0.1, or spell out "
                                           "insecure (--insecure) in a network where you trust every machine"};
  }
  if (!is_cluster_name(security.name)) {
    throw Failure{Errc::InvalidConfig, "'" + security.name + "' is no name of a " + troupe::name(role) + ": use letters, digits, '.', '_' and '-', beginning with a letter or digit"};
  }
  found.plain = {"", role, security.name};
  found.may_leave_host = security.insecure;
  if (!security.directory.empty()) found.token = read_token(security.directory / "token");
  return found;
}

void warn_insecure() {
  using Clock = std::chrono::steady_clock;
  static std::atomic<Clock::rep> next{0};  // the last warning's end
  const auto now = Clock::now().time_since_epoch().count();
  auto due = next.load();
  if (now < due || !next.compare_exchange_strong(due, now + Clock::duration{std::chrono::minutes{1}}.count())) return;
  std::fprintf(stderr, "troupe: INSECURE: links between hosts have neither encryption nor certificates, as --insecure says; whoever reaches their ports can take part\n");
}

bool is_insecure(const LinkCredentials& credentials, const std::string& host) { return !credentials.tls && !is_loopback_host(host); }

}  // namespace troupe::detail
