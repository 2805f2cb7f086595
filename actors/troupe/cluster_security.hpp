#pragma once

#include <chrono>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

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
  /// Of `troupe certs`: ca.pem, NAME.pem, NAME.key (0600), token (0600). Empty: no TLS. With a token and no ca.pem, on loopback only: no TLS, but both
  /// ends must know the token.
  std::filesystem::path directory;
  std::string name;                 ///< whose certificate
  /// Without TLS beyond loopback. Spelled out by the user, and warned of once a minute.
  bool insecure = false;
};

/// Checks files, permissions, chain, dates, role and name before anything listens or connects. Throws Failure naming the file and what to do:
/// "…/b.pem: expired on 2026-11-02; renew it with troupe certs issue --replace". With an empty directory there is nothing to check.
void check(const ClusterSecurity& security, ClusterRole role);
/// A sentence to show when the certificate, or its CA, ends within `within`; empty otherwise. Throws Failure like `check` for files that cannot be read.
[[nodiscard]] std::string expiry_warning(const ClusterSecurity& security, std::chrono::hours within = std::chrono::hours{7 * 24});

/// `troupe certs init`: a new CA (ECDSA P-256; ca.pem, and ca.key with mode 0600), and the token (0600). Makes the directory, mode 0700.
/// Throws Failure{AlreadyExists}: never overwrites; Failure{InvalidArgument, StorageUnavailable}.
void make_cluster_ca(const std::filesystem::path& directory, const std::string& cluster, std::chrono::hours valid);
/// `troupe certs issue`: NAME.pem and NAME.key from the CA in `directory` (which has its key) into `into`, with ca.pem and the token beside them. Dates begin
/// five minutes ago, for clocks that differ. A ca.pem of the same cluster in `into` is brought up to date; another cluster's files are never touched.
/// @param replace renews NAME.pem and NAME.key where they are; else that is Failure{AlreadyExists}
void issue_certificate(const std::filesystem::path& directory, ClusterRole role, const std::string& name, std::chrono::hours valid,
                       const std::filesystem::path& into, bool replace = false);
/// `troupe certs rotate`: a new CA; ca.pem holds the old ones too until their ends, so that nodes can be renewed one by one. The token stays.
void rotate_cluster_ca(const std::filesystem::path& directory, std::chrono::hours valid);

/// One certificate of a directory, for people.
struct CertificateInfo {
  std::filesystem::path file;
  std::string cluster;
  std::string role;               ///< "ca", "head", "node", "operator"; empty: it names none
  std::string name;               ///< empty for a CA
  std::string valid_from, valid_until;  ///< "2026-11-02", UTC
  std::int64_t days_left = 0;     ///< below 0: it has expired
};
/// What is in a directory of certificates, CAs first. Throws Failure{FileNotFound}; files that are no certificates are left out.
[[nodiscard]] std::vector<CertificateInfo> list_certificates(const std::filesystem::path& directory);

}  // namespace troupe
