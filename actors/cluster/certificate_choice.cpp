#include "certificate_choice.hpp"

#include "node_machine.hpp"

#include <troupe/errors.hpp>

#include <algorithm>
#include <vector>

namespace troupe::detail {

namespace {

std::string joined(const std::vector<std::string>& names) {
  std::string text;
  for (const auto& one : names) text += (text.empty() ? "" : ", ") + one;
  return text;
}

}  // namespace

ClusterSecurity choose_certificate(const std::filesystem::path& directory, ClusterRole role, const std::string& wanted, const std::string& otherwise, bool insecure) {
  ClusterSecurity security{directory, wanted.empty() ? otherwise : wanted, insecure};
  if (directory.empty() || !wanted.empty()) return security;
  std::error_code error;
  if (!std::filesystem::is_directory(directory, error)) throw Failure{Errc::FileNotFound, directory.string() + ": is no directory of certificates; troupe certs makes one"};
  if (!std::filesystem::exists(directory / "ca.pem", error)) return security;
  std::vector<std::string> names;
  for (const auto& one : list_certificates(directory)) {
    if (one.role == name(role) && !one.name.empty()) names.push_back(one.name);
  }
  const std::string word = name(role);
  if (names.empty()) throw Failure{Errc::NotFound, directory.string() + ": has no certificate of role " + word + "; make one: troupe certs issue --role " + word + " --name NAME"};
  const auto host = host_name();
  const auto own = std::find_if(names.begin(), names.end(), [&](const std::string& one) { return one == host || one == host.substr(0, host.find('.')); });
  if (names.size() > 1 && own == names.end()) {
    throw Failure{Errc::InvalidConfig, directory.string() + ": has several certificates of role " + word + " (" + joined(names) + "), none named after this host, " + host + "; say --cert NAME"};
  }
  security.name = own == names.end() ? names.front() : *own;
  return security;
}

}  // namespace troupe::detail
