#include "launch_plan.hpp"

#include "cluster/certificate_choice.hpp"
#include "cluster/node_machine.hpp"

#include <troupe/accelerate_config.hpp>
#include <troupe/errors.hpp>

#include <arpa/inet.h>
#include <ifaddrs.h>
#include <netdb.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace troupe::tools {

namespace {

constexpr int default_port = 7077;

std::string number(double value) {
  char text[32];
  (void)std::snprintf(text, sizeof text, "%.6g", value);
  return text;
}

/// This host's name, with and without its domain, and its addresses.
std::vector<std::string> own_names() {
  std::vector<std::string> names{detail::host_name()};
  if (const auto dot = names.front().find('.'); dot != std::string::npos) names.push_back(names.front().substr(0, dot));
  ifaddrs* list = nullptr;
  if (getifaddrs(&list) != 0) return names;
  for (const auto* one = list; one != nullptr; one = one->ifa_next) {
    char text[INET_ADDRSTRLEN];
    if (one->ifa_addr == nullptr || one->ifa_addr->sa_family != AF_INET) continue;
    sockaddr_in address{};
    std::memcpy(&address, one->ifa_addr, sizeof address);
    if (inet_ntop(AF_INET, &address.sin_addr, text, sizeof text) != nullptr) names.emplace_back(text);
  }
  freeifaddrs(list);
  return names;
}

bool is_loopback(const std::string& host) {
  addrinfo hints{}, *list = nullptr;
  hints.ai_family = AF_INET;
  if (getaddrinfo(host.c_str(), nullptr, &hints, &list) != 0 || list == nullptr) return false;
  sockaddr_in address{};
  std::memcpy(&address, list->ai_addr, sizeof address);
  freeaddrinfo(list);
  return (ntohl(address.sin_addr.s_addr) >> 24) == 127;
}

LaunchTask task_of_accelerate(const LaunchOptions& o) {
  const auto config = AccelerateConfig::from_yaml(o.accelerate);
  const auto node = o.node_rank >= 0 ? o.node_rank : config.machine_rank.value_or(0);
  if (config.num_machines > 1 && !config.main_process_ip && o.head.empty()) {
    throw Failure{Errc::InvalidConfig, o.accelerate + ": main_process_ip is not there; it says where the head of " + std::to_string(config.num_machines) + " machines is"};
  }
  return {o.accelerate, node, 0, node, config.num_machines, config.main_process_ip.value_or(""), config.main_process_port.value_or(0), {}, ""};
}

/// What this process is, of options or of a launcher's environment; nothing: of one host.
std::optional<LaunchTask> find_task(const LaunchOptions& o) {
  if (!o.accelerate.empty()) return task_of_accelerate(o);
  if (!o.hosts.empty()) {
    const auto hosts = expand_hosts(o.hosts);
    if (o.node_rank < 0) return task_of_host(hosts, own_names());
    if (o.node_rank >= static_cast<int>(hosts.size())) throw Failure{Errc::InvalidConfig, "--node-rank " + std::to_string(o.node_rank) + " is not below the number of hosts, " + std::to_string(hosts.size())};
    return LaunchTask{"--hosts", o.node_rank, 0, o.node_rank, static_cast<int>(hosts.size()), hosts.front(), 0, hosts, ""};
  }
  if (o.node_rank >= 0) {
    if (o.nodes <= o.node_rank) throw Failure{Errc::InvalidConfig, "--node-rank " + std::to_string(o.node_rank) + " needs --nodes, the number of hosts, above it"};
    return LaunchTask{"--node-rank", o.node_rank, 0, o.node_rank, o.nodes, "", 0, {}, ""};
  }
  if (o.nodes > 0) return {};
  return task_from_environment([](const std::string& name) -> std::optional<std::string> {
    const auto* value = std::getenv(name.c_str());
    if (value == nullptr) return {};
    return value;
  });
}

/// A node's name: of a certificate of its own, or of a shared one with the host's name after it.
std::string agent_name(const LaunchOptions& o) {
  const auto host = detail::host_name();
  const auto brief = host.substr(0, host.find('.'));
  if (o.certs.empty()) return brief;
  const auto certificate = detail::choose_certificate(o.certs, ClusterRole::Node, "", brief, o.insecure).name;
  return certificate == host || certificate == brief ? certificate : certificate + "-" + brief;
}

void add_agent_options(LaunchPlan& plan, const LaunchOptions& o, int share_among) {
  const auto add = [&](std::initializer_list<std::string> words) { plan.agent_options.insert(plan.agent_options.end(), words); };
  const auto machine = detail::resources_of_machine();
  if (o.node.cpus > 0) add({"--cpus", number(o.node.cpus)});
  else if (share_among > 1) add({"--cpus", number(std::max(1.0, machine.cpus / share_among))});
  if (o.node.gpus >= 0) add({"--gpus", number(o.node.gpus)});
  else if (share_among > 1) add({"--gpus", number(std::floor(machine.gpus / share_among))});
  if (!o.node.memory.empty()) add({"--memory", o.node.memory});
  else if (share_among > 1) add({"--memory", std::to_string(machine.memory_bytes / static_cast<unsigned>(share_among))});
  for (const auto& label : o.node.labels) add({"--label", label});
  for (const auto& resource : o.node.resources) add({"--resource", resource});
  if (o.insecure) add({"--insecure"});
}

LaunchPlan plan_one_host(const LaunchOptions& o) {
  LaunchPlan plan;
  plan.is_one_host = true;
  std::string expected;
  for (int i = 1; i <= o.nodes; ++i) {
    plan.own_agents.push_back("node-" + std::to_string(i));
    expected += (expected.empty() ? "" : ",") + plan.own_agents.back();
  }
  plan.program_environment = {{"TROUPE_CLUSTER_LISTEN", o.head.empty() ? "127.0.0.1:0" : o.head}, {"TROUPE_CLUSTER_NODES", std::to_string(o.nodes)},
                              {"TROUPE_CLUSTER_EXPECT", expected}, {"TROUPE_CLUSTER_WAIT", std::to_string(o.wait)}};
  add_agent_options(plan, o, o.nodes);
  plan.node_key = "process " + std::to_string(getpid());
  return plan;
}

std::string joined(const std::vector<std::string>& words) {
  std::string text;
  for (const auto& word : words) text += (text.empty() ? "" : ",") + word;
  return text;
}

}  // namespace

void use_certificates(LaunchPlan& plan, const std::string& directory) {
  plan.program_environment["TROUPE_CLUSTER_CERTS"] = directory;
  plan.agent_options.insert(plan.agent_options.end(), {"--certs", directory});
}

LaunchPlan plan_launch(const LaunchOptions& o) {
  const auto task = find_task(o);
  if (!task && o.nodes == 0) {
    throw Failure{Errc::InvalidConfig, "no launcher has started this; say --nodes N for N nodes on this host, or --hosts a,b,c and start it on each of them"};
  }
  const auto head = o.head.empty() ? HostPort{} : parse_host_port(o.head);
  const auto host = !head.host.empty() ? head.host : task ? task->head_host : "";
  if (!task || (task->num_nodes == 1 && host.empty())) {
    auto one = o;
    one.nodes = std::max(1, o.nodes);
    auto plan = plan_one_host(one);
    plan.role = task ? role_of(*task) : LaunchRole::Head;
    if (task) plan.node_key = task->launcher + " " + task->job;
    if (!o.certs.empty()) use_certificates(plan, o.certs);
    return plan;
  }
  if (host.empty()) throw Failure{Errc::InvalidConfig, task->launcher + " does not say where the first node is; say --head HOST:PORT, the same on all"};
  if (o.certs.empty() && !o.insecure && !(task->num_nodes == 1)) {
    throw Failure{Errc::InvalidConfig, "several hosts need certificates: say --certs DIR (troupe certs makes them; docs/cluster_security.md), or --insecure on a network that you trust"};
  }
  const auto port = head.port > 0 ? head.port : task->head_port > 0 ? task->head_port : default_port;
  LaunchPlan plan;
  plan.role = role_of(*task);
  plan.head = host + ":" + std::to_string(port);
  plan.node_key = task->launcher + " " + task->job + " " + plan.head;
  plan.own_agents = {agent_name(o)};
  add_agent_options(plan, o, 1);
  // A host's own name may be an address of loopback there.
  const auto listen = task->num_nodes > 1 && is_loopback(host) ? "0.0.0.0" : host;
  plan.program_environment = {{"TROUPE_CLUSTER_LISTEN", listen + ":" + std::to_string(port)}, {"TROUPE_CLUSTER_NODES", std::to_string(task->num_nodes)},
                              {"TROUPE_CLUSTER_EXPECT", joined(task->hosts)}, {"TROUPE_CLUSTER_WAIT", std::to_string(o.wait)}};
  if (o.insecure) plan.program_environment["TROUPE_CLUSTER_INSECURE"] = "1";
  if (!o.certs.empty()) use_certificates(plan, o.certs);
  plan.agent_options.insert(plan.agent_options.end(), {"--once", "--give-up-after", std::to_string(o.wait)});
  return plan;
}

}  // namespace troupe::tools
