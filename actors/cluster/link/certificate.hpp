#pragma once

#include <troupe/cluster_security.hpp>

#include <openssl/evp.h>
#include <openssl/ssl.h>
#include <openssl/x509.h>

#include <ctime>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <vector>

// A cluster's certificates, made and read by OpenSSL's C API. Functions throw Failure unless they say otherwise.

namespace troupe::detail {

struct FreeOpenSsl {
  void operator()(X509* p) const noexcept { X509_free(p); }
  void operator()(EVP_PKEY* p) const noexcept { EVP_PKEY_free(p); }
  void operator()(SSL_CTX* p) const noexcept { SSL_CTX_free(p); }
  void operator()(SSL* p) const noexcept { SSL_free(p); }
  void operator()(BIO* p) const noexcept { BIO_free_all(p); }
};
template <class T>
using OpenSsl = std::unique_ptr<T, FreeOpenSsl>;

struct Validity {
  std::time_t from = 0, until = 0;  ///< UTC seconds
};

struct Issuer {
  OpenSsl<X509> certificate;
  OpenSsl<EVP_PKEY> key;
};

/// The newest reason that OpenSSL gave in this thread, in its words; empties its list.
[[nodiscard]] std::string openssl_reason();

/// ECDSA on P-256.
[[nodiscard]] OpenSsl<EVP_PKEY> make_key();
/// Signed by itself, for `troupe://CLUSTER`; may sign leaves only.
[[nodiscard]] OpenSsl<X509> make_ca(EVP_PKEY& key, const std::string& cluster, Validity validity);
/// For both ends of TLS, as `troupe://CLUSTER/ROLE/NAME`; it ends no later than its issuer.
[[nodiscard]] OpenSsl<X509> make_leaf(const Issuer& issuer, EVP_PKEY& key, const ClusterIdentity& identity, Validity validity);
/// The same with any URI, or none when that is empty.
[[nodiscard]] OpenSsl<X509> make_leaf_of(const Issuer& issuer, EVP_PKEY& key, const std::string& uri, Validity validity);

[[nodiscard]] std::string to_pem(X509& certificate);
[[nodiscard]] std::string to_pem(EVP_PKEY& key);
/// All certificates of a file, at least one.
[[nodiscard]] std::vector<OpenSsl<X509>> read_certificates(const std::filesystem::path& path);
[[nodiscard]] OpenSsl<EVP_PKEY> read_key(const std::filesystem::path& path);

/// What a leaf says of its holder; nothing when it names no role. Does not throw.
[[nodiscard]] std::optional<ClusterIdentity> identity_of(const X509& certificate);
/// The cluster of a CA; empty: it is no cluster's. Does not throw.
[[nodiscard]] std::string cluster_of(const X509& ca);
[[nodiscard]] Validity validity_of(const X509& certificate);
/// "2026-11-02"
[[nodiscard]] std::string date_text(std::time_t time);

/// "node" → Node. Does not throw.
[[nodiscard]] std::optional<ClusterRole> role_of(const std::string& word);
/// [A-Za-z0-9][A-Za-z0-9._-]{0,127}. Does not throw.
[[nodiscard]] bool is_cluster_name(const std::string& word);

}  // namespace troupe::detail
