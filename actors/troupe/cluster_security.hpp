#pragma once

#include <chrono>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>

namespace troupe {

/// What a certificate entitles its holder to.
enum class ClusterRole : std::uint8_t {
  Head,      ///< runs trainers and gives orders to nodes
  Node,      ///< offers its machine
  Operator,  ///< may look, stop runs and drain nodes: the command `troupe`
};
[[nodiscard]] const char* name(ClusterRole role) noexcept;

/// Who the other end is: from its certificate. Without TLS: what it says it is.
struct ClusterIdentity {
  std::string cluster;
  ClusterRole role = ClusterRole::Node;
  std::string name;  ///< [A-Za-z0-9][A-Za-z0-9._-]{0,127}
  bool operator==(const ClusterIdentity&) const = default;
};

/// With what a process of a cluster shows who it is, and knows the others.
struct ClusterSecurity {
  std::filesystem::path directory;  ///< of `troupe certs`: ca.pem, NAME.pem, NAME.key (0600), token (0600); empty: no TLS
  std::string name;                 ///< whose certificate
  /// Without TLS beyond loopback. Spelled out by the user, and warned of once a minute.
  bool insecure = false;
};

/// Checks files, permissions, chain, dates, role and name before anything listens or connects. Throws Failure naming the file and what to do:
/// "…/b.pem: expired on 2026-11-02; renew it with troupe certs rotate".
void check(const ClusterSecurity& security, ClusterRole role);

/// `troupe certs init`: a new CA (ECDSA P-256), and the token. Throws Failure; never overwrites.
void make_cluster_ca(const std::filesystem::path& directory, const std::string& cluster, std::chrono::hours valid);
/// `troupe certs issue`: NAME.pem and NAME.key from the CA in `directory` (which has its key) into `into`, with ca.pem and the token beside them.
void issue_certificate(const std::filesystem::path& directory, ClusterRole role, const std::string& name, std::chrono::hours valid,
                       const std::filesystem::path& into);
/// `troupe certs rotate`: a new CA; ca.pem holds the old one too until its end, so that nodes can be renewed one by one.
void rotate_cluster_ca(const std::filesystem::path& directory, std::chrono::hours valid);

}  // namespace troupe
