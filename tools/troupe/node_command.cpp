#include "commands.hpp"
#include "node_arguments.hpp"

#include "cluster/certificate_choice.hpp"
#include "cluster/node_machine.hpp"

#include <troupe/errors.hpp>
#include <troupe/launch.hpp>
#include <troupe/node.hpp>

#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <memory>
#include <thread>

namespace troupe::tools {

namespace {

int wake_pipe[2] = {-1, -1};

extern "C" void on_signal(int signal) {
  const int saved = errno;
  const char byte = static_cast<char>(signal);
  (void)!write(wake_pipe[1], &byte, 1);
  errno = saved;
}

std::pair<std::string, std::string> split(const std::string& text, const char* what) {
  const auto equals = text.find('=');
  if (equals == std::string::npos || equals == 0) throw WrongUse{std::string("'") + text + "' is no " + what + "; write KEY=VALUE"};
  return {text.substr(0, equals), text.substr(equals + 1)};
}

double amount(const std::string& text, const std::string& kind) {
  char* end = nullptr;
  const double value = std::strtod(text.c_str(), &end);
  if (text.empty() || *end != '\0' || !(value >= 0)) throw WrongUse{"--resource " + kind + "=" + text + ": say how many there are, as " + kind + "=2"};
  return value;
}

NodeOptions node_options(const NodeArguments& a) {
  (void)parse_host_port(a.join);
  NodeOptions options;
  options.join = a.join;
  options.security = detail::choose_certificate(a.certs, ClusterRole::Node, a.cert, a.name.empty() ? detail::host_name() : a.name, a.insecure);
  options.name = a.name;
  options.address = a.address;
  options.resources = detail::resources_of_machine();
  if (a.cpus > 0) options.resources.cpus = a.cpus;
  if (a.gpus >= 0) options.resources.gpus = a.gpus;
  if (!a.memory.empty()) options.resources.memory_bytes = parse_bytes(a.memory);
  for (const auto& label : a.labels) options.labels.insert_or_assign(split(label, "label").first, split(label, "label").second);
  for (const auto& resource : a.resources) {
    const auto [kind, text] = split(resource, "resource");
    options.resources.custom[kind] = amount(text, kind);
  }
  options.give_up_after = std::chrono::milliseconds{static_cast<long>(a.give_up_after * 1000)};
  options.head_grace = std::chrono::milliseconds{static_cast<long>(a.head_grace * 1000)};
  options.forward_output = !a.keep_output;
  options.end_with_head = a.once;
  return options;
}

int serve(const NodeArguments& a) {
  const auto options = node_options(a);
  if (pipe(wake_pipe) != 0) throw Failure{Errc::StartFailed, "cannot make a pipe; too many files are open"};
  const auto say = [](const std::string& text) { std::fprintf(stderr, "troupe node: %s\n", text.c_str()); };
  std::error_code error;
  if (std::filesystem::exists(options.security.directory / "ca.pem", error)) {
    if (const auto warning = expiry_warning(options.security); !warning.empty()) say(warning);
  }
  const auto agent = NodeAgent::start(options, say);
  for (const int signal : {SIGTERM, SIGINT}) std::signal(signal, on_signal);
  Outcome outcome;
  std::thread waiter{[&] {
    outcome = agent->wait();
    (void)!write(wake_pipe[1], "\0", 1);
  }};
  int signals = 0;
  for (char byte = 0;;) {
    if (read(wake_pipe[0], &byte, 1) != 1) continue;
    if (byte == 0) break;
    // The second is at once: ranks end when their agent is gone.
    if (++signals > 1) std::_Exit(128 + byte);
    say("leaves when its ranks have gone elsewhere, within " + std::to_string(static_cast<long>(a.leave_within)) + " s; once more to end at once");
    agent->leave(std::chrono::milliseconds{static_cast<long>(a.leave_within * 1000)});
  }
  waiter.join();
  if (outcome.ok()) return 0;
  say(outcome.text());
  return 1;
}

}  // namespace

Command add_node(CLI::App& app) {
  auto arguments = std::make_shared<NodeArguments>();
  auto& a = *arguments;
  auto* command = app.add_subcommand("node", "Offers this machine to a head: starts ranks for it, watches them, ends them when it is gone");
  command->add_option("--join", a.join, "the head's HOST:PORT")->required()->envname("TROUPE_HEAD");
  command->add_option("--name", a.name, "of this node [the certificate's; without certificates the host's]");
  command->add_option("--address", a.address, "of the network that ranks use between hosts [the one that reaches the head]");
  add_resources(*command, a);
  command->add_option("--certs", a.certs, "directory with ca.pem, token and a node's certificate; without it: a head on this host, in the clear")->envname("TROUPE_CERTS");
  command->add_option("--cert", a.cert, "name of the certificate, where the directory has several of role node");
  command->add_flag("--insecure", a.insecure, "joins a head on another host in the clear: whoever is on that network can run programs here");
  command->add_option("--give-up-after", a.give_up_after, "ends when no head could be joined for so many seconds; 0: tries for ever")->capture_default_str()->check(CLI::NonNegativeNumber);
  command->add_option("--head-grace", a.head_grace, "seconds without a word from the head after which ranks are ended; beyond 1.5 it is 1.5")->capture_default_str()->check(CLI::Range(0.1, 3600.0));
  command->add_option("--leave-within", a.leave_within, "seconds that ranks have to move away after the first SIGTERM or Ctrl-C")->capture_default_str()->check(CLI::NonNegativeNumber);
  command->add_flag("--once", a.once, "ends when the head's program has ended, else it waits for the next");
  command->add_flag("--keep-output", a.keep_output, "ranks print here, not at the head");
  return [arguments] { return serve(*arguments); };
}

}  // namespace troupe::tools
