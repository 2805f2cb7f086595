#include "commands.hpp"

#include <troupe/cluster_security.hpp>
#include <troupe/errors.hpp>

#include <chrono>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>

namespace troupe::tools {

namespace {

struct Options {
  std::string directory = "certs", cluster, role, name, into;
  int days = 0;
  bool replace = false, json = false;
};

std::chrono::hours hours(int days) { return std::chrono::hours{24} * days; }

ClusterRole role_named(const std::string& word) {
  for (const auto role : {ClusterRole::Head, ClusterRole::Node, ClusterRole::Operator}) {
    if (word == name(role)) return role;
  }
  throw WrongUse{"'" + word + "' is no role; say head, node or operator"};
}

int init(const Options& o) {
  make_cluster_ca(o.directory, o.cluster, hours(o.days));
  std::printf("made %s/ca.pem, ca.key and token for cluster '%s'\n", o.directory.c_str(), o.cluster.c_str());
  std::printf("next: a certificate for each process, issued here:\n  troupe certs issue --directory %s --role head --name head\n  troupe certs issue --directory %s --role node --name NODE --into NODE\n",
              o.directory.c_str(), o.directory.c_str());
  std::printf("ca.key stays here: who has it can join the cluster as anybody\n");
  return 0;
}

int issue(const Options& o) {
  const auto into = o.into.empty() ? o.directory : o.into;
  issue_certificate(o.directory, role_named(o.role), o.name, hours(o.days), into, o.replace);
  std::printf("%s %s/%s.pem and %s.key for %s '%s'\n", o.replace ? "renewed" : "made", into.c_str(), o.name.c_str(), o.name.c_str(), o.role.c_str(), o.name.c_str());
  if (!o.into.empty()) std::printf("next: copy %s to that machine as it is (ca.pem, %s.pem, %s.key, token), by a way that nobody else reads, as scp -rp\n", into.c_str(), o.name.c_str(), o.name.c_str());
  return 0;
}

int rotate(const Options& o) {
  rotate_cluster_ca(o.directory, hours(o.days));
  std::printf("made a new CA; %s/ca.pem holds it and the old one\n", o.directory.c_str());
  std::printf("next, in this order; nothing has to be started again:\n  1. copy ca.pem to every machine\n  2. renew each certificate: troupe certs issue --directory %s --role ROLE --name NAME --into DIR --replace\n",
              o.directory.c_str());
  return 0;
}

int show(const Options& o) {
  const auto list = list_certificates(o.directory);
  if (o.json) {
    auto rows = nlohmann::ordered_json::array();
    for (const auto& one : list) {
      rows.push_back({{"file", one.file.string()}, {"cluster", one.cluster}, {"role", one.role}, {"name", one.name}, {"valid_from", one.valid_from}, {"valid_until", one.valid_until}, {"days_left", one.days_left}});
    }
    std::printf("%s\n", rows.dump(1).c_str());
    return 0;
  }
  if (list.empty()) throw Failure{Errc::NotFound, o.directory + ": has no certificates; troupe certs init makes a CA"};
  std::printf("%-24s %-16s %-9s %-20s %-11s %s\n", "file", "cluster", "role", "name", "until", "days left");
  for (const auto& one : list) {
    std::printf("%-24s %-16s %-9s %-20s %-11s %s\n", one.file.filename().c_str(), one.cluster.c_str(), one.role.empty() ? "none" : one.role.c_str(), one.name.empty() ? "-" : one.name.c_str(),
                one.valid_until.c_str(), one.days_left < 0 ? "expired" : std::to_string(one.days_left).c_str());
  }
  return 0;
}

CLI::App* add_part(CLI::App& command, Options& o, const char* name, const char* what) {
  auto* part = command.add_subcommand(name, what);
  part->allow_extras();
  part->add_option("--directory", o.directory, "where the CA is")->capture_default_str();
  return part;
}

}  // namespace

Command add_certs(CLI::App& app) {
  auto options = std::make_shared<Options>();
  auto& o = *options;
  auto* command = app.add_subcommand("certs", "Makes and renews the certificates of a cluster: init, issue, rotate, show");
  command->footer("A cluster's machines show each other certificates of the cluster's own CA, with a role and a name, and a token.\n"
                  "  troupe certs init --cluster lab            once: the CA and the token\n"
                  "  troupe certs issue --role node --name n1   for every head, node and operator\n"
                  "  troupe certs show                          what there is, and until when\n"
                  "  troupe certs rotate                        a new CA, without a pause\n"
                  "docs/cluster_security.md says what they protect.");
  auto* init_part = add_part(*command, o, "init", "A new CA, ECDSA P-256, and the cluster's token; overwrites nothing");
  init_part->add_option("--cluster", o.cluster, "the cluster's name")->required();
  auto* issue_part = add_part(*command, o, "issue", "A certificate and its key for one process of the cluster, with ca.pem and the token beside them");
  issue_part->add_option("--role", o.role, "head: runs trainers; node: offers its machine; operator: looks, stops and drains")->required()->check(CLI::IsMember({"head", "node", "operator"}));
  issue_part->add_option("--name", o.name, "whose: a machine's or a person's name; NAME.pem and NAME.key are written")->required();
  issue_part->add_option("--into", o.into, "directory for them, made if it is not there; without it: beside the CA");
  issue_part->add_flag("--replace", o.replace, "renews files that are there");
  auto* rotate_part = add_part(*command, o, "rotate", "A new CA beside the old one, which stays good until its end; the token stays");
  auto* show_part = add_part(*command, o, "show", "What certificates there are: role, name, last day");
  show_part->add_flag("--json", o.json, "as JSON");
  constexpr int ca_days = 3650, leaf_days = 365;
  for (auto* part : {init_part, rotate_part}) part->add_option("--days", o.days, "how long the CA is valid [" + std::to_string(ca_days) + "]")->check(CLI::Range(1, 36500));
  issue_part->add_option("--days", o.days, "how long it is valid, at most until the CA's end [" + std::to_string(leaf_days) + "]")->check(CLI::Range(1, 36500));
  return [options, init_part, issue_part, rotate_part, show_part] {
    if (options->days == 0) options->days = issue_part->parsed() ? leaf_days : ca_days;
    if (init_part->parsed()) return init(*options);
    if (issue_part->parsed()) return issue(*options);
    if (rotate_part->parsed()) return rotate(*options);
    if (show_part->parsed()) return show(*options);
    throw WrongUse{"say what to do: init, issue, rotate or show"};
  };
}

}  // namespace troupe::tools
