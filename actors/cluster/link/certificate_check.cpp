// Whether a process can show who it is, in words that say what to do.
#include "certificate.hpp"
#include "private_file.hpp"

#include <troupe/errors.hpp>

#include <openssl/x509_vfy.h>

namespace troupe {

namespace fs = std::filesystem;
using namespace detail;

namespace {

[[noreturn]] void refuse(const fs::path& file, const std::string& why) { throw Failure{Errc::InvalidConfig, file.string() + ": " + why}; }

void must_be_there(const fs::path& file, const std::string& how) {
  std::error_code error;
  if (!fs::exists(file, error)) throw Failure{Errc::FileNotFound, file.string() + ": is not there; " + how};
}

void check_dates(const fs::path& file, const X509& certificate) {
  const auto dates = validity_of(certificate);
  const auto now = std::time(nullptr);
  if (now < dates.from) refuse(file, "is not valid before " + date_text(dates.from) + "; is this machine's clock right?");
  if (now >= dates.until) refuse(file, "expired on " + date_text(dates.until) + "; renew it with troupe certs issue --replace");
}

void check_chain(const fs::path& pem, X509& leaf, const std::vector<OpenSsl<X509>>& authorities) {
  X509_STORE* store = X509_STORE_new();
  for (const auto& ca : authorities) X509_STORE_add_cert(store, ca.get());
  X509_STORE_CTX* context = X509_STORE_CTX_new();
  const bool good = X509_STORE_CTX_init(context, store, &leaf, nullptr) == 1 && X509_verify_cert(context) == 1;
  const std::string reason = good ? "" : X509_verify_cert_error_string(X509_STORE_CTX_get_error(context));
  X509_STORE_CTX_free(context);
  X509_STORE_free(store);
  (void)openssl_reason();
  if (!good) refuse(pem, "does not come from a CA in ca.pem beside it (" + reason + "); issue it again with this cluster's CA, or copy that CA's ca.pem here");
}

void check_identity(const fs::path& pem, const X509& leaf, const ClusterSecurity& security, ClusterRole role, const std::string& cluster) {
  const auto identity = identity_of(leaf);
  if (!identity) refuse(pem, "names no role in a cluster; issue one with troupe certs issue");
  if (identity->role != role) {
    refuse(pem, std::string("is a certificate for role ") + troupe::name(identity->role) + "; this process needs role " + troupe::name(role) +
                    ": troupe certs issue --role " + troupe::name(role));
  }
  if (identity->name != security.name) refuse(pem, "is the certificate of '" + identity->name + "', not of '" + security.name + "'; issue one for that name");
  if (!cluster.empty() && identity->cluster != cluster) refuse(pem, "is of cluster '" + identity->cluster + "', ca.pem beside it of '" + cluster + "'");
}

}  // namespace

void check(const ClusterSecurity& security, ClusterRole role) {
  if (security.directory.empty()) return;
  if (!is_cluster_name(security.name)) {
    throw Failure{Errc::InvalidConfig, "'" + security.name + "' is no name of a certificate; say whose to use (its file without .pem) in " + security.directory.string()};
  }
  const auto pem = security.directory / (security.name + ".pem"), key_file = security.directory / (security.name + ".key"), ca = security.directory / "ca.pem",
             token = security.directory / "token";
  const auto issue = std::string("issue it with troupe certs issue --role ") + troupe::name(role) + " --name " + security.name;
  must_be_there(ca, "copy it from where troupe certs init made it");
  must_be_there(pem, issue);
  must_be_there(key_file, issue);
  must_be_there(token, "copy it from where troupe certs init made it");
  must_be_private(key_file);
  (void)read_token(token);
  const auto authorities = read_certificates(ca);
  const auto leaf = std::move(read_certificates(pem).front());
  check_dates(pem, *leaf);
  check_identity(pem, *leaf, security, role, cluster_of(*authorities.front()));
  const auto key = read_key(key_file);
  if (X509_check_private_key(leaf.get(), key.get()) != 1) {
    (void)openssl_reason();
    refuse(key_file, "does not belong to the certificate " + pem.filename().string() + "; copy both of one troupe certs issue, or issue again with --replace");
  }
  check_chain(pem, *leaf, authorities);
}

std::string expiry_warning(const ClusterSecurity& security, std::chrono::hours within) {
  if (security.directory.empty()) return "";
  const auto soon = std::time(nullptr) + std::chrono::seconds{within}.count();
  const auto pem = security.directory / (security.name + ".pem"), ca = security.directory / "ca.pem";
  if (const auto end = validity_of(*read_certificates(ca).front()).until; end <= soon) {
    return ca.string() + ": the CA expires on " + date_text(end) + "; renew it with troupe certs rotate, then every certificate";
  }
  if (const auto end = validity_of(*read_certificates(pem).front()).until; end <= soon) {
    return pem.string() + ": expires on " + date_text(end) + "; renew it with troupe certs issue --replace";
  }
  return "";
}

}  // namespace troupe
