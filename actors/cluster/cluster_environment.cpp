#include "certificate_choice.hpp"

#include <troupe/cluster.hpp>
#include <troupe/errors.hpp>
#include <troupe/launch.hpp>

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <cstdlib>
#include <set>

namespace troupe {

namespace {

std::string variable(const char* name) {
  const auto* value = std::getenv(name);
  return value == nullptr ? "" : value;
}

int number(const char* name, int otherwise) {
  const auto text = variable(name);
  if (text.empty()) return otherwise;
  int value = 0;
  const auto read = std::from_chars(text.data(), text.data() + text.size(), value);
  if (read.ec != std::errc{} || read.ptr != text.data() + text.size() || value < 0) {
    throw Failure{Errc::InvalidConfig, std::string(name) + " is '" + text + "', but should be a number from 0 on; troupe launch sets it"};
  }
  return value;
}

/// Tells the launcher on its pipe where nodes may join.
void tell_launcher(const std::string& address) {
  const int fd = number("TROUPE_CLUSTER_TELL", -1);
  if (fd < 0) return;
  unsetenv("TROUPE_CLUSTER_TELL");
  const auto line = address + "\n";
  (void)!write(fd, line.data(), line.size());
  close(fd);
}

/// A node's name is its host's, or its certificate's with the host's after it.
bool is_of_host(const std::string& node, const std::string& host) {
  const auto first = [](const std::string& name) { return name.substr(0, name.find('.')); };
  const bool is_address = host.find_first_not_of("0123456789.") == std::string::npos;
  return node == host || node.ends_with("-" + host) || (!is_address && (first(node) == first(host) || first(node).ends_with("-" + first(host))));
}

/// "here: node-a; not here: node-c", of the expected ones.
std::string who_is_missing(const ClusterStatus& status) {
  std::set<std::string> there;
  for (const auto& node : status.nodes) {
    if (node.state != NodeState::Away) there.insert(node.name);
  }
  std::string here, away;
  for (const auto& name : there) here += (here.empty() ? "" : ", ") + name;
  const auto expected = variable("TROUPE_CLUSTER_EXPECT");
  for (const auto& name : expected.empty() ? std::vector<std::string>{} : expand_hosts(expected)) {
    if (std::none_of(there.begin(), there.end(), [&](const auto& node) { return is_of_host(node, name); })) away += (away.empty() ? "" : ", ") + name;
  }
  return (here.empty() ? "none is here" : "here: " + here) + (away.empty() ? "" : "; not here: " + away);
}

}  // namespace

std::shared_ptr<Cluster> cluster_from_environment(ClusterOptions options) {
  options.listen = variable("TROUPE_CLUSTER_LISTEN");
  if (options.listen.empty()) return nullptr;
  options.security = detail::choose_certificate(variable("TROUPE_CLUSTER_CERTS"), ClusterRole::Head, variable("TROUPE_CLUSTER_NAME"), "head",
                                                variable("TROUPE_CLUSTER_INSECURE") == "1");
  const int wanted = number("TROUPE_CLUSTER_NODES", 0);
  const std::chrono::seconds limit{number("TROUPE_CLUSTER_WAIT", 120)};
  auto cluster = Cluster::open(std::move(options));
  tell_launcher(cluster->address());
  if (!cluster->wait_for_nodes(wanted, limit)) {
    const auto status = cluster->status();
    throw Failure{Errc::DeadlinePassed, "not all of " + std::to_string(wanted) + " nodes joined " + cluster->address() + " within " + std::to_string(limit.count()) + " s; " +
                                            who_is_missing(status) + ". Look at their agents' output; troupe launch --wait gives them longer"};
  }
  return cluster;
}

}  // namespace troupe
