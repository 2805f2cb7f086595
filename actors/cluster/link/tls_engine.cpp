#include "tls_engine.hpp"

#include <troupe/errors.hpp>

#include <openssl/err.h>
#include <openssl/ssl.h>
#include <sys/stat.h>

#include <cstdio>

namespace troupe::detail {

namespace {

constexpr int first_alert = 1000;  // SSL_AD_REASON_OFFSET: reasons from here on are alerts that the peer sent

OpenSsl<SSL_CTX> make_context(const ClusterSecurity& security) {
  OpenSsl<SSL_CTX> made{SSL_CTX_new(TLS_method())};
  const auto must = [](bool good) {
    if (!good) throw Failure{Errc::Internal, "OpenSSL: TLS cannot be set up: " + openssl_reason()};
  };
  must(made != nullptr);
  auto* context = made.get();
  must(SSL_CTX_set_min_proto_version(context, TLS1_3_VERSION) == 1);
  must(SSL_CTX_use_certificate_file(context, (security.directory / (security.name + ".pem")).c_str(), SSL_FILETYPE_PEM) == 1);
  must(SSL_CTX_use_PrivateKey_file(context, (security.directory / (security.name + ".key")).c_str(), SSL_FILETYPE_PEM) == 1);
  must(SSL_CTX_check_private_key(context) == 1);
  // Only the cluster's own CAs, none of the system's.
  must(SSL_CTX_load_verify_file(context, (security.directory / "ca.pem").c_str()) == 1);
  SSL_CTX_set_verify(context, SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT, nullptr);
  // No sessions: every connection shows its certificate again.
  SSL_CTX_set_session_cache_mode(context, SSL_SESS_CACHE_OFF);
  SSL_CTX_set_options(context, SSL_OP_NO_TICKET | SSL_OP_NO_RENEGOTIATION);
  must(SSL_CTX_set_num_tickets(context, 0) == 1);
  SSL_CTX_set_mode(context, SSL_MODE_RELEASE_BUFFERS);
  return made;
}

TlsFault fault_of(int reason) {
  switch (reason) {
    case SSL_R_UNSUPPORTED_PROTOCOL:
    case SSL_R_WRONG_SSL_VERSION:
    case SSL_R_TLSV1_ALERT_PROTOCOL_VERSION: return TlsFault::Version;
    case SSL_R_CERTIFICATE_VERIFY_FAILED:
    case SSL_R_PEER_DID_NOT_RETURN_A_CERTIFICATE: return TlsFault::Certificate;
    case SSL_R_HTTP_REQUEST:
    case SSL_R_HTTPS_PROXY_REQUEST:
    case SSL_R_WRONG_VERSION_NUMBER:
    case SSL_R_UNEXPECTED_MESSAGE: return TlsFault::NotTls;
    case first_alert + SSL_AD_BAD_CERTIFICATE:
    case first_alert + SSL_AD_UNSUPPORTED_CERTIFICATE:
    case first_alert + SSL_AD_CERTIFICATE_REVOKED:
    case first_alert + SSL_AD_CERTIFICATE_EXPIRED:
    case first_alert + SSL_AD_CERTIFICATE_UNKNOWN:
    case first_alert + SSL_AD_UNKNOWN_CA:
    case first_alert + SSL_AD_CERTIFICATE_REQUIRED: return TlsFault::Refused;
    default: return TlsFault::Broken;
  }
}

std::string words(TlsFault fault, int reason, long verified) {
  if (fault == TlsFault::Certificate) {
    switch (verified) {
      case X509_V_ERR_CERT_HAS_EXPIRED: return "the peer's certificate has expired";
      case X509_V_ERR_CERT_NOT_YET_VALID: return "the peer's certificate is not valid yet; are both machines' clocks right?";
      case X509_V_OK: return "the peer showed no certificate";
      case X509_V_ERR_INVALID_PURPOSE: return "the peer's certificate is not one for TLS between nodes";
      default: return std::string("the peer's certificate does not come from this cluster's CA (") + X509_verify_cert_error_string(verified) + ")";
    }
  }
  if (fault == TlsFault::Refused) {
    if (reason == first_alert + SSL_AD_CERTIFICATE_EXPIRED) return "the peer says that this side's certificate has expired; renew it with troupe certs issue --replace";
    if (reason == first_alert + SSL_AD_UNKNOWN_CA) return "the peer does not know the CA of this side's certificate; use certificates and ca.pem of the same cluster";
    return "the peer does not take this side's certificate (is it valid yet, and are both machines' clocks right?)";
  }
  if (fault == TlsFault::Version) return "the peer does not speak TLS 1.3";
  if (fault == TlsFault::NotTls) return "the peer does not speak TLS; is this the port of a cluster, and has it certificates?";
  return "";
}

}  // namespace

TlsContext::TlsContext(ClusterSecurity security, ClusterRole role) : security_(std::move(security)), role_(role) { load(); }

std::array<TlsContext::Stamp, 3> TlsContext::stamps() const {
  std::array<Stamp, 3> found{};
  const std::array<std::string, 3> names{"ca.pem", security_.name + ".pem", security_.name + ".key"};
  for (std::size_t i = 0; i < names.size(); ++i) {
    struct stat status {};
    if (::stat((security_.directory / names[i]).c_str(), &status) != 0) continue;
    found[i] = {status.st_mtim.tv_sec * 1'000'000'000 + status.st_mtim.tv_nsec, status.st_ino, static_cast<std::uint64_t>(status.st_size)};
  }
  return found;
}

void TlsContext::load() {
  const auto now = stamps();
  check(security_, role_);
  auto made = make_context(security_);
  const auto own = identity_of(*SSL_CTX_get0_certificate(made.get()));
  if (!own) throw Failure{Errc::InvalidConfig, "the certificate of '" + security_.name + "' names no role in a cluster"};
  own_ = *own;
  context_ = std::move(made);
  stamps_ = now;
}

SSL_CTX& TlsContext::get() {
  if (const auto now = stamps(); now != stamps_) {
    try {
      load();
    } catch (const Failure& failure) {
      stamps_ = now;  // said once
      std::fprintf(stderr, "troupe: renewed certificates are not used: %s\n", failure.what());
    }
  }
  return *context_;
}

TlsEngine::TlsEngine(SSL_CTX& context, bool is_listening) : ssl_(SSL_new(&context)) {
  in_ = BIO_new(BIO_s_mem());
  out_ = BIO_new(BIO_s_mem());
  if (!ssl_ || in_ == nullptr || out_ == nullptr) throw Failure{Errc::OutOfMemory, "no memory for another TLS connection"};
  BIO_set_mem_eof_return(in_, -1);  // empty: wait, it is no end
  SSL_set_bio(ssl_.get(), in_, out_);
  if (is_listening) {
    SSL_set_accept_state(ssl_.get());
  } else {
    SSL_set_connect_state(ssl_.get());
  }
}

void TlsEngine::start() { shake_hands(); }

void TlsEngine::receive(std::string_view raw, std::string& text) {
  if (fault_ != TlsFault::None) return;
  if (BIO_write(in_, raw.data(), static_cast<int>(raw.size())) != static_cast<int>(raw.size())) return fail();
  if (!is_open_) shake_hands();
  while (is_open_ && fault_ == TlsFault::None) {
    std::array<char, 16 << 10> part;
    ERR_clear_error();
    const int size = SSL_read(ssl_.get(), part.data(), static_cast<int>(part.size()));
    if (size <= 0) {
      const int error = SSL_get_error(ssl_.get(), size);
      if (error == SSL_ERROR_WANT_READ || error == SSL_ERROR_WANT_WRITE) break;
      if (error == SSL_ERROR_ZERO_RETURN) {
        fault_ = TlsFault::Ended;
      } else {
        fail();
      }
      break;
    }
    text.append(part.data(), static_cast<std::size_t>(size));
  }
  collect();
}

void TlsEngine::send(std::string_view text) {
  if (fault_ != TlsFault::None || text.empty()) return;
  ERR_clear_error();
  if (SSL_write(ssl_.get(), text.data(), static_cast<int>(text.size())) <= 0) fail();
  collect();
}

void TlsEngine::shake_hands() {
  ERR_clear_error();
  const int done = SSL_do_handshake(ssl_.get());
  if (done == 1) {
    is_open_ = true;
  } else if (const int error = SSL_get_error(ssl_.get(), done); error != SSL_ERROR_WANT_READ && error != SSL_ERROR_WANT_WRITE) {
    fail();
  }
  collect();
}

void TlsEngine::fail() {
  const int reason = ERR_GET_REASON(ERR_peek_error());  // the first of the list is the cause
  fault_ = fault_of(reason);
  reason_ = words(fault_, reason, SSL_get_verify_result(ssl_.get()));
  const auto last = openssl_reason();
  if (reason_.empty()) reason_ = "TLS failed: " + last;
}

void TlsEngine::collect() {
  char* data = nullptr;
  const auto size = BIO_get_mem_data(out_, &data);
  if (size <= 0) return;
  output_.append(data, static_cast<std::size_t>(size));
  BIO_reset(out_);
}

std::optional<ClusterIdentity> TlsEngine::peer() const {
  const auto* certificate = SSL_get0_peer_certificate(ssl_.get());
  return certificate != nullptr ? identity_of(*certificate) : std::nullopt;
}

std::string TlsEngine::binding() const {
  static constexpr char label[] = "EXPORTER-troupe-link-1";
  std::string secret(32, '\0');
  if (SSL_export_keying_material(ssl_.get(), reinterpret_cast<unsigned char*>(secret.data()), secret.size(), label, sizeof label - 1, nullptr, 0, 0) != 1) {
    throw Failure{Errc::Internal, "OpenSSL: no secret of the connection: " + openssl_reason()};
  }
  return secret;
}

}  // namespace troupe::detail
