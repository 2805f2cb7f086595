// Making a cluster's CA and certificates, and looking at them.
#include "certificate.hpp"
#include "private_file.hpp"

#include <troupe/errors.hpp>

#include <openssl/x509v3.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

namespace troupe {

namespace fs = std::filesystem;
using namespace detail;

namespace {

constexpr std::time_t clock_skew_s = 300;

Validity from_now(std::chrono::hours valid) {
  if (valid.count() <= 0) throw Failure{Errc::InvalidArgument, "a certificate must be valid for at least an hour"};
  const auto now = std::time(nullptr);
  return {now - clock_skew_s, now + std::chrono::seconds{valid}.count()};
}

void must_be_name(const std::string& word, const char* what) {
  if (is_cluster_name(word)) return;
  throw Failure{Errc::InvalidArgument, "'" + word + "' is no name of a " + what + ": use letters, digits, '.', '_' and '-', at most 128, beginning with a letter or digit"};
}

void make_private_directory(const fs::path& directory) {
  std::error_code error;
  if (fs::is_directory(directory, error)) return;
  if (directory.has_parent_path()) fs::create_directories(directory.parent_path(), error);
  if (::mkdir(directory.c_str(), 0700) != 0) throw Failure{Errc::StorageUnavailable, directory.string() + ": cannot be made: " + std::strerror(errno)};
}

void must_be_free(const fs::path& path) {
  if (fs::exists(fs::symlink_status(path))) throw Failure{Errc::AlreadyExists, path.string() + " is there already; it is not replaced"};
}

Issuer read_issuer(const fs::path& directory) {
  const auto key = directory / "ca.key";
  if (!fs::exists(key)) {
    throw Failure{Errc::FileNotFound, key.string() + ": is not there; certificates are issued where the CA was made (troupe certs init --directory " + directory.string() + ")"};
  }
  must_be_private(key);
  Issuer issuer{std::move(read_certificates(directory / "ca.pem").front()), read_key(key)};
  if (X509_check_private_key(issuer.certificate.get(), issuer.key.get()) != 1) {
    (void)openssl_reason();
    throw Failure{Errc::InvalidConfig, key.string() + ": does not belong to the first certificate of ca.pem beside it"};
  }
  if (validity_of(*issuer.certificate).until <= std::time(nullptr)) {
    throw Failure{Errc::InvalidConfig, (directory / "ca.pem").string() + ": expired on " + date_text(validity_of(*issuer.certificate).until) + "; make a new CA with troupe certs rotate"};
  }
  return issuer;
}

/// Copies a file of the cluster beside a new certificate; one of the same cluster is brought up to date.
void put_beside(const fs::path& from, const fs::path& to, unsigned mode, bool may_replace) {
  const auto bytes = read_small_file(from);
  if (!fs::exists(to)) return write_file(to, bytes, mode);
  if (read_small_file(to) == bytes) return;
  if (!may_replace) throw Failure{Errc::AlreadyExists, to.string() + " is another cluster's; choose another directory"};
  write_file(to, bytes, mode, Replace::Yes);
}

std::int64_t days_until(std::time_t end) {
  const auto left = static_cast<std::int64_t>(end) - static_cast<std::int64_t>(std::time(nullptr));
  return left >= 0 ? left / 86'400 : -((-left + 86'399) / 86'400);
}

CertificateInfo describe(const fs::path& file, const X509& certificate) {
  const auto dates = validity_of(certificate);
  CertificateInfo info{file, "", "", "", date_text(dates.from), date_text(dates.until), days_until(dates.until)};
  if (X509_check_ca(const_cast<X509*>(&certificate)) == 1) {
    info.role = "ca";
    info.cluster = cluster_of(certificate);
  } else if (const auto identity = identity_of(certificate)) {
    info.cluster = identity->cluster;
    info.role = troupe::name(identity->role);
    info.name = identity->name;
  }
  return info;
}

}  // namespace

void make_cluster_ca(const fs::path& directory, const std::string& cluster, std::chrono::hours valid) {
  must_be_name(cluster, "cluster");
  const auto validity = from_now(valid);
  make_private_directory(directory);
  for (const char* file : {"ca.pem", "ca.key", "token"}) must_be_free(directory / file);
  const auto key = make_key();
  write_file(directory / "ca.key", to_pem(*key), 0600);
  write_file(directory / "ca.pem", to_pem(*make_ca(*key, cluster, validity)), 0644);
  write_file(directory / "token", make_token(), 0600);
}

void issue_certificate(const fs::path& directory, ClusterRole role, const std::string& name, std::chrono::hours valid, const fs::path& into, bool replace) {
  must_be_name(name, "certificate");
  if (name == "ca") throw Failure{Errc::InvalidArgument, "'ca' is the CA's own name; choose another"};
  const auto validity = from_now(valid);
  const auto issuer = read_issuer(directory);
  const auto cluster = cluster_of(*issuer.certificate);
  if (cluster.empty()) throw Failure{Errc::InvalidConfig, (directory / "ca.pem").string() + ": is no CA of a cluster; make one with troupe certs init"};
  (void)read_token(directory / "token");
  make_private_directory(into);
  const auto pem = into / (name + ".pem"), secret = into / (name + ".key");
  if (!replace) {
    must_be_free(pem);
    must_be_free(secret);
  }
  if (!fs::exists(into) || !fs::equivalent(directory, into)) {
    const bool same = fs::exists(into / "ca.pem") && cluster_of(*read_certificates(into / "ca.pem").front()) == cluster;
    put_beside(directory / "token", into / "token", 0600, false);
    put_beside(directory / "ca.pem", into / "ca.pem", 0644, same);
  }
  const auto key = make_key();
  const auto leaf = make_leaf(issuer, *key, {cluster, role, name}, validity);
  write_file(secret, to_pem(*key), 0600, replace ? Replace::Yes : Replace::No);
  write_file(pem, to_pem(*leaf), 0644, replace ? Replace::Yes : Replace::No);
}

void rotate_cluster_ca(const fs::path& directory, std::chrono::hours valid) {
  const auto validity = from_now(valid);
  must_be_private(directory / "ca.key");
  const auto old = read_certificates(directory / "ca.pem");
  const auto cluster = cluster_of(*old.front());
  if (cluster.empty()) throw Failure{Errc::InvalidConfig, (directory / "ca.pem").string() + ": is no CA of a cluster; make one with troupe certs init"};
  const auto key = make_key();
  auto bundle = to_pem(*make_ca(*key, cluster, validity));
  for (const auto& certificate : old) {
    if (validity_of(*certificate).until > std::time(nullptr)) bundle += to_pem(*certificate);
  }
  // The key goes first: with an old ca.pem beside it nothing can be issued, which says so, and rotating again mends it.
  write_file(directory / "ca.key", to_pem(*key), 0600, Replace::Yes);
  write_file(directory / "ca.pem", bundle, 0644, Replace::Yes);
}

std::vector<CertificateInfo> list_certificates(const fs::path& directory) {
  std::error_code error;
  if (!fs::is_directory(directory, error)) throw Failure{Errc::FileNotFound, directory.string() + ": is no directory; troupe certs init makes one"};
  std::vector<CertificateInfo> found;
  for (const auto& entry : fs::directory_iterator{directory}) {
    if (entry.path().extension() != ".pem") continue;
    try {
      for (const auto& certificate : read_certificates(entry.path())) found.push_back(describe(entry.path(), *certificate));
    } catch (const Failure&) {
    }
  }
  std::stable_sort(found.begin(), found.end(), [](const auto& a, const auto& b) {
    return std::pair{a.role != "ca", a.file} < std::pair{b.role != "ca", b.file};
  });
  return found;
}

}  // namespace troupe
