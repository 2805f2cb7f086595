#include "cluster_options.hpp"

#include "cluster/certificate_choice.hpp"

#include <troupe/launch.hpp>

#include <chrono>

namespace troupe::tools {

void HeadOptions::add_to(CLI::App& command) {
  command.add_option("--head", head, "HOST:PORT that the program listens on (ClusterOptions::listen)")->capture_default_str()->envname("TROUPE_HEAD");
  command.add_option("--certs", certs, "directory with ca.pem, token and an operator's certificate; without it: a head on this host, in the clear")->envname("TROUPE_CERTS");
  command.add_option("--cert", cert, "name of the certificate, where the directory has several of role operator");
  command.add_flag("--insecure", insecure, "talks to a head on another host in the clear");
  command.add_option("--timeout", timeout, "seconds to wait for the head")->capture_default_str()->check(CLI::Range(0.1, 3600.0));
  command.add_flag("--json", json, "as JSON");
}

std::unique_ptr<detail::OperatorClient> HeadOptions::connect() const {
  (void)parse_host_port(head);
  const auto security = detail::choose_certificate(certs, ClusterRole::Operator, cert, "operator", insecure);
  return std::make_unique<detail::OperatorClient>(head, security, std::chrono::milliseconds{static_cast<long>(timeout * 1000)});
}

}  // namespace troupe::tools
