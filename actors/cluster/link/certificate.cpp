#include "certificate.hpp"

#include <troupe/errors.hpp>

#include <openssl/bn.h>
#include <openssl/ec.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/x509v3.h>

#include <algorithm>
#include <array>
#include <string_view>

namespace troupe::detail {

namespace {

constexpr std::string_view scheme = "troupe://";

void must(bool good, const char* what) {
  if (!good) throw Failure{Errc::Internal, std::string("OpenSSL: ") + what + ": " + openssl_reason()};
}

void add_extension(X509& certificate, X509V3_CTX& context, int nid, const std::string& value) {
  X509_EXTENSION* extension = X509V3_EXT_conf_nid(nullptr, &context, nid, value.c_str());
  must(extension != nullptr, "an extension cannot be made");
  const bool added = X509_add_ext(&certificate, extension, -1) == 1;
  X509_EXTENSION_free(extension);
  must(added, "an extension cannot be added");
}

/// A random serial number, which the subject's common name ends in, so that an old and a new CA have different names.
std::string set_serial(X509& certificate) {
  BIGNUM* number = BN_new();
  const bool set = number != nullptr && BN_rand(number, 120, BN_RAND_TOP_ONE, BN_RAND_BOTTOM_ANY) == 1 &&
                   BN_to_ASN1_INTEGER(number, X509_get_serialNumber(&certificate)) != nullptr;
  char* digits = set ? BN_bn2hex(number) : nullptr;
  const std::string hex = digits != nullptr ? digits : "";
  OPENSSL_free(digits);
  BN_free(number);
  must(!hex.empty(), "a serial number cannot be drawn");
  return hex.substr(0, 8);
}

/// Version, serial number, subject, dates and public key.
OpenSsl<X509> begin_certificate(EVP_PKEY& key, const std::string& subject, Validity validity) {
  OpenSsl<X509> made{X509_new()};
  must(made != nullptr, "no memory for a certificate");
  must(X509_set_version(made.get(), 2) == 1, "version");
  auto common_name = subject + " " + set_serial(*made);
  if (common_name.size() > 64) common_name = common_name.substr(common_name.size() - 64);  // X.509's limit
  must(X509_NAME_add_entry_by_txt(X509_get_subject_name(made.get()), "CN", MBSTRING_UTF8,
                                  reinterpret_cast<const unsigned char*>(common_name.data()), static_cast<int>(common_name.size()), -1, 0) == 1,
       "subject");
  must(ASN1_TIME_set(X509_getm_notBefore(made.get()), validity.from) != nullptr, "first day");
  must(ASN1_TIME_set(X509_getm_notAfter(made.get()), validity.until) != nullptr, "last day");
  must(X509_set_pubkey(made.get(), &key) == 1, "public key");
  return made;
}

/// The URIs among the subject's alternative names.
std::vector<std::string> uris_of(const X509& certificate) {
  std::vector<std::string> found;
  auto* names = static_cast<GENERAL_NAMES*>(X509_get_ext_d2i(&certificate, NID_subject_alt_name, nullptr, nullptr));
  for (int i = 0; i < sk_GENERAL_NAME_num(names); ++i) {
    const auto* name = sk_GENERAL_NAME_value(names, i);
    if (name->type != GEN_URI) continue;
    const auto* text = name->d.uniformResourceIdentifier;
    found.emplace_back(reinterpret_cast<const char*>(ASN1_STRING_get0_data(text)), static_cast<std::size_t>(ASN1_STRING_length(text)));
  }
  GENERAL_NAMES_free(names);
  return found;
}

std::time_t seconds_of(const ASN1_TIME* time) {
  std::tm parts{};
  return ASN1_TIME_to_tm(time, &parts) == 1 ? ::timegm(&parts) : 0;
}

OpenSsl<BIO> open_file(const std::filesystem::path& path) {
  OpenSsl<BIO> file{BIO_new_file(path.c_str(), "r")};
  if (!file) {
    (void)openssl_reason();
    throw Failure{Errc::FileNotFound, path.string() + ": cannot be read; is it there, and may this user read it?"};
  }
  return file;
}

std::string text_of(BIO& memory) {
  char* data = nullptr;
  const auto size = BIO_get_mem_data(&memory, &data);
  return {data, static_cast<std::size_t>(size)};
}

}  // namespace

std::string openssl_reason() {
  const auto code = ERR_peek_last_error();
  ERR_clear_error();
  const char* reason = code != 0 ? ERR_reason_error_string(code) : nullptr;
  return reason != nullptr ? reason : "no reason given";
}

OpenSsl<EVP_PKEY> make_key() {
  OpenSsl<EVP_PKEY> key{EVP_EC_gen("P-256")};
  must(key != nullptr, "a key cannot be made");
  return key;
}

OpenSsl<X509> make_ca(EVP_PKEY& key, const std::string& cluster, Validity validity) {
  auto made = begin_certificate(key, "troupe CA " + cluster, validity);
  must(X509_set_issuer_name(made.get(), X509_get_subject_name(made.get())) == 1, "issuer");
  X509V3_CTX context;
  X509V3_set_ctx_nodb(&context);
  X509V3_set_ctx(&context, made.get(), made.get(), nullptr, nullptr, 0);
  add_extension(*made, context, NID_basic_constraints, "critical,CA:TRUE,pathlen:0");
  add_extension(*made, context, NID_key_usage, "critical,keyCertSign");
  add_extension(*made, context, NID_subject_key_identifier, "hash");
  add_extension(*made, context, NID_subject_alt_name, "URI:" + std::string(scheme) + cluster);
  must(X509_sign(made.get(), &key, EVP_sha256()) > 0, "signature");
  return made;
}

OpenSsl<X509> make_leaf_of(const Issuer& issuer, EVP_PKEY& key, const std::string& uri, Validity validity) {
  validity.until = std::min(validity.until, validity_of(*issuer.certificate).until);
  auto made = begin_certificate(key, "troupe", validity);
  must(X509_set_issuer_name(made.get(), X509_get_subject_name(issuer.certificate.get())) == 1, "issuer");
  X509V3_CTX context;
  X509V3_set_ctx_nodb(&context);
  X509V3_set_ctx(&context, issuer.certificate.get(), made.get(), nullptr, nullptr, 0);
  add_extension(*made, context, NID_basic_constraints, "critical,CA:FALSE");
  add_extension(*made, context, NID_key_usage, "critical,digitalSignature");
  add_extension(*made, context, NID_ext_key_usage, "serverAuth,clientAuth");
  add_extension(*made, context, NID_subject_key_identifier, "hash");
  add_extension(*made, context, NID_authority_key_identifier, "keyid:always");
  if (!uri.empty()) add_extension(*made, context, NID_subject_alt_name, "URI:" + uri);
  must(X509_sign(made.get(), issuer.key.get(), EVP_sha256()) > 0, "signature");
  return made;
}

OpenSsl<X509> make_leaf(const Issuer& issuer, EVP_PKEY& key, const ClusterIdentity& identity, Validity validity) {
  return make_leaf_of(issuer, key, std::string(scheme) + identity.cluster + "/" + troupe::name(identity.role) + "/" + identity.name, validity);
}

std::string to_pem(X509& certificate) {
  OpenSsl<BIO> memory{BIO_new(BIO_s_mem())};
  must(memory && PEM_write_bio_X509(memory.get(), &certificate) == 1, "a certificate cannot be written");
  return text_of(*memory);
}

std::string to_pem(EVP_PKEY& key) {
  OpenSsl<BIO> memory{BIO_new(BIO_s_secmem())};
  must(memory && PEM_write_bio_PrivateKey(memory.get(), &key, nullptr, nullptr, 0, nullptr, nullptr) == 1, "a key cannot be written");
  return text_of(*memory);
}

std::vector<OpenSsl<X509>> read_certificates(const std::filesystem::path& path) {
  const auto file = open_file(path);
  std::vector<OpenSsl<X509>> found;
  while (auto* next = PEM_read_bio_X509(file.get(), nullptr, nullptr, nullptr)) found.emplace_back(next);
  const auto code = ERR_peek_last_error();
  const bool at_end = ERR_GET_LIB(code) == ERR_LIB_PEM && ERR_GET_REASON(code) == PEM_R_NO_START_LINE;
  const auto reason = openssl_reason();
  if (found.empty() || !at_end) throw Failure{Errc::FileCorrupt, path.string() + ": is no certificate in PEM format (" + reason + "); issue it again"};
  return found;
}

OpenSsl<EVP_PKEY> read_key(const std::filesystem::path& path) {
  const auto file = open_file(path);
  // A key with a passphrase is refused: nobody could answer on a node.
  constexpr auto no_passphrase = [](char*, int, int, void*) { return -1; };
  OpenSsl<EVP_PKEY> key{PEM_read_bio_PrivateKey(file.get(), nullptr, no_passphrase, nullptr)};
  if (!key) throw Failure{Errc::FileCorrupt, path.string() + ": is no private key without passphrase in PEM format (" + openssl_reason() + "); issue it again"};
  return key;
}

std::optional<ClusterIdentity> identity_of(const X509& certificate) {
  std::optional<ClusterIdentity> found;
  for (const auto& uri : uris_of(certificate)) {
    if (!uri.starts_with(scheme)) continue;
    const auto path = uri.substr(scheme.size());
    const auto first = path.find('/'), second = first == std::string::npos ? first : path.find('/', first + 1);
    if (second == std::string::npos || found) return std::nullopt;  // two names: neither is believed
    const auto role = role_of(path.substr(first + 1, second - first - 1));
    ClusterIdentity identity{path.substr(0, first), role.value_or(ClusterRole::Node), path.substr(second + 1)};
    if (!role || !is_cluster_name(identity.cluster) || !is_cluster_name(identity.name)) return std::nullopt;
    found = std::move(identity);
  }
  return found;
}

std::string cluster_of(const X509& ca) {
  for (const auto& uri : uris_of(ca)) {
    if (uri.starts_with(scheme) && is_cluster_name(uri.substr(scheme.size()))) return uri.substr(scheme.size());
  }
  return "";
}

Validity validity_of(const X509& certificate) { return {seconds_of(X509_get0_notBefore(&certificate)), seconds_of(X509_get0_notAfter(&certificate))}; }

std::string date_text(std::time_t time) {
  std::tm parts{};
  ::gmtime_r(&time, &parts);
  std::array<char, 16> text{};
  return {text.data(), std::strftime(text.data(), text.size(), "%Y-%m-%d", &parts)};
}

std::optional<ClusterRole> role_of(const std::string& word) {
  for (const auto role : {ClusterRole::Head, ClusterRole::Node, ClusterRole::Operator}) {
    if (word == troupe::name(role)) return role;
  }
  return std::nullopt;
}

bool is_cluster_name(const std::string& word) {
  const auto plain = [](char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9'); };
  return !word.empty() && word.size() <= 128 && plain(word[0]) &&
         std::all_of(word.begin(), word.end(), [&](char c) { return plain(c) || c == '.' || c == '_' || c == '-'; });
}

}  // namespace troupe::detail

namespace troupe {

const char* name(ClusterRole role) noexcept {
  switch (role) {
    case ClusterRole::Head: return "head";
    case ClusterRole::Node: return "node";
    case ClusterRole::Operator: return "operator";
  }
  return "unknown";
}

}  // namespace troupe
