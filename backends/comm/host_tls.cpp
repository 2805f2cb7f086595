#include "host_tls.hpp"

#include <troupe/errors.hpp>

#include <openssl/err.h>
#include <openssl/ssl.h>

#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

namespace troupe::detail {

namespace {

constexpr std::size_t kKeyBytes = 32;
/// What one recv may bring, and what may wait to be sent: enough that system calls cost little beside the bytes.
constexpr std::size_t kInBytes = std::size_t{256} << 10;
constexpr std::size_t kOutBytes = std::size_t{256} << 10;
constexpr std::size_t kWriteBytes = std::size_t{128} << 10;

/// OpenSSL demands it of sessions between ends that verify each other.
constexpr unsigned char kPurpose[] = "troupe hosts";

TlsStream& stream_of(SSL* ssl) { return *static_cast<TlsStream*>(SSL_get_app_data(ssl)); }

/// The key as the session that TLS 1.3 resumes.
SSL_SESSION* session_of(SSL* ssl, const std::string& key) {
  constexpr unsigned char aes_128_gcm_sha256[] = {0x13, 0x01};
  const auto* cipher = SSL_CIPHER_find(ssl, aes_128_gcm_sha256);
  auto* session = SSL_SESSION_new();
  if (session && cipher && SSL_SESSION_set1_master_key(session, reinterpret_cast<const unsigned char*>(key.data()), key.size()) == 1 &&
      SSL_SESSION_set_cipher(session, cipher) == 1 && SSL_SESSION_set1_id_context(session, kPurpose, sizeof kPurpose) == 1 && SSL_SESSION_set_protocol_version(session, TLS1_3_VERSION) == 1)
    return session;
  SSL_SESSION_free(session);
  return nullptr;
}

int offer_key(SSL* ssl, const EVP_MD*, const unsigned char** identity, std::size_t* length, SSL_SESSION** session) {
  const auto& stream = stream_of(ssl);
  *identity = reinterpret_cast<const unsigned char*>(stream.identity().data());
  *length = stream.identity().size();
  *session = session_of(ssl, stream.key().key());
  return *session != nullptr;
}

int find_key(SSL* ssl, const unsigned char* identity, std::size_t length, SSL_SESSION** session) {
  constexpr std::size_t longest = 200;
  *session = nullptr;
  if (length > longest) return 1;  // nobody we know
  auto& stream = stream_of(ssl);
  stream.set_identity({reinterpret_cast<const char*>(identity), length});
  *session = session_of(ssl, stream.key().key());
  return *session != nullptr;
}

// Between OpenSSL and the socket: large reads and writes instead of one of each for every record.
int bio_write(BIO* bio, const char* from, int bytes) {
  BIO_clear_retry_flags(bio);
  static_cast<TlsStream*>(BIO_get_data(bio))->take_out(from, bytes);
  return bytes;
}

int bio_read(BIO* bio, char* to, int most) {
  BIO_clear_retry_flags(bio);
  const auto got = static_cast<TlsStream*>(BIO_get_data(bio))->take_in(to, static_cast<std::size_t>(most));
  if (got < 0) BIO_set_retry_read(bio);
  return got;
}

long bio_ctrl(BIO*, int command, long, void*) { return command == BIO_CTRL_FLUSH ? 1 : 0; }

BIO_METHOD* bio_method() {
  static BIO_METHOD* const method = [] {
    auto* made = BIO_meth_new(BIO_get_new_index() | BIO_TYPE_SOURCE_SINK, "troupe hosts");
    BIO_meth_set_write(made, bio_write);
    BIO_meth_set_read(made, bio_read);
    BIO_meth_set_ctrl(made, bio_ctrl);
    return made;
  }();
  return method;
}

[[noreturn]] void internal(const char* what) { throw Failure{Errc::Internal, std::string{"hosts: OpenSSL: "} + what}; }

}  // namespace

TlsKey::TlsKey(std::string key) : key_(std::move(key)), context_(nullptr) {
  if (key_.size() != kKeyBytes)
    throw Failure{Errc::InvalidArgument, "hosts: the key has " + std::to_string(key_.size()) + " bytes, not 32"};
  context_ = SSL_CTX_new(TLS_method());
  if (!context_) internal("SSL_CTX_new");
  // An end that has a certificate and not the key is refused by the empty list of who may sign.
  SSL_CTX_set_verify(context_, SSL_VERIFY_PEER, nullptr);
  SSL_CTX_set_options(context_, SSL_OP_NO_TICKET | SSL_OP_NO_RENEGOTIATION);
  SSL_CTX_set_session_cache_mode(context_, SSL_SESS_CACHE_OFF);
  SSL_CTX_set_psk_use_session_callback(context_, offer_key);
  SSL_CTX_set_psk_find_session_callback(context_, find_key);
  if (SSL_CTX_set_session_id_context(context_, kPurpose, sizeof kPurpose) != 1 || SSL_CTX_set_num_tickets(context_, 0) != 1 || SSL_CTX_set_min_proto_version(context_, TLS1_3_VERSION) != 1 ||
      SSL_CTX_set_ciphersuites(context_, "TLS_AES_128_GCM_SHA256") != 1)
    internal("TLS 1.3 with AES-128-GCM");
}

TlsKey::~TlsKey() {
  SSL_CTX_free(context_);
  OPENSSL_cleanse(key_.data(), key_.size());
}

TlsStream::TlsStream(int fd, std::shared_ptr<const TlsKey> key, End end, std::string identity)
    : fd_(fd), key_(std::move(key)), identity_(std::move(identity)), ssl_(SSL_new(key_->context())) {
  auto* bio = BIO_new(bio_method());
  if (!ssl_ || !bio) {
    SSL_free(ssl_);
    BIO_free(bio);
    close(fd_);
    internal("SSL_new");
  }
  BIO_set_data(bio, this);
  BIO_set_init(bio, 1);
  SSL_set_bio(ssl_, bio, bio);
  SSL_set_app_data(ssl_, this);
  if (end == End::Connects) SSL_set_connect_state(ssl_);
  else SSL_set_accept_state(ssl_);
}

TlsStream::~TlsStream() {
  SSL_free(ssl_);
  close(fd_);
}

bool TlsStream::shake() {
  ERR_clear_error();
  const int done = SSL_do_handshake(ssl_);
  (void)flush();
  if (done == 1) {
    if (SSL_session_reused(ssl_) != 1) throw Failure{Errc::ProtocolError, "the other end has not the group's key"};
    return true;
  }
  const auto why = SSL_get_error(ssl_, done);
  if (!closed_ && (why == SSL_ERROR_WANT_READ || why == SSL_ERROR_WANT_WRITE)) return false;
  if (closed_) throw Failure{Errc::NetworkFailed, "the other end closed the connection during the handshake"};
  const char* text = ERR_reason_error_string(ERR_peek_error());
  throw Failure{Errc::ProtocolError, std::string{"the handshake failed: "} + (text ? text : "no TLS")};
}

std::size_t TlsStream::write(std::span<const std::byte> bytes) {
  if (closed_ || bytes.empty()) return 0;
  if (out_.size() - out_begin_ >= kOutBytes && !flush()) return 0;
  const auto some = std::min(bytes.size(), kWriteBytes);
  if (plain_) {
    take_out(reinterpret_cast<const char*>(bytes.data()), static_cast<int>(some));
  } else {
    ERR_clear_error();
    if (SSL_write(ssl_, bytes.data(), static_cast<int>(some)) != static_cast<int>(some)) {
      closed_ = true;
      return 0;
    }
  }
  (void)flush();
  return some;
}

bool TlsStream::flush() {
  while (out_begin_ < out_.size()) {
    const auto sent = send(fd_, out_.data() + out_begin_, out_.size() - out_begin_, MSG_NOSIGNAL);
    if (sent < 0 && errno == EINTR) continue;
    if (sent < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) return false;
    if (sent <= 0) {
      closed_ = true;
      return false;
    }
    out_begin_ += static_cast<std::size_t>(sent);
    wire_bytes_.fetch_add(static_cast<std::uint64_t>(sent), std::memory_order_relaxed);
  }
  out_.clear();
  out_begin_ = 0;
  return true;
}

void TlsStream::take_out(const char* from, int bytes) { out_.insert(out_.end(), from, from + bytes); }

int TlsStream::take_in(char* to, std::size_t most) {
  ssize_t got = 0;
  do got = recv(fd_, to, most, 0);
  while (got < 0 && errno == EINTR);
  if (got < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) return -1;
  if (got <= 0) closed_ = true;
  return static_cast<int>(std::max<ssize_t>(got, 0));
}

void TlsStream::widen() {
  out_.reserve(kOutBytes + 2 * kWriteBytes);
  if (plain_ || SSL_free_buffers(ssl_) != 1) return;  // small buffers have something in them: they do as well
  SSL_set_default_read_buffer_len(ssl_, kInBytes);
  SSL_set_read_ahead(ssl_, 1);
}

std::size_t TlsStream::read(std::span<std::byte> bytes) {
  if (!plain_) return read_tls(bytes);
  std::size_t done = 0;
  while (done < bytes.size()) {
    const auto got = take_in(reinterpret_cast<char*>(bytes.data() + done), std::min(bytes.size() - done, kInBytes));
    if (got <= 0) break;
    done += static_cast<std::size_t>(got);
  }
  return done;
}

std::size_t TlsStream::read_tls(std::span<std::byte> bytes) {
  std::size_t done = 0;
  while (done < bytes.size()) {
    ERR_clear_error();
    const auto got = SSL_read(ssl_, bytes.data() + done, static_cast<int>(std::min<std::size_t>(bytes.size() - done, 1U << 30)));
    if (got <= 0) {
      const auto why = SSL_get_error(ssl_, got);
      if (why != SSL_ERROR_WANT_READ && why != SSL_ERROR_WANT_WRITE) closed_ = true;
      break;
    }
    done += static_cast<std::size_t>(got);
  }
  return done;
}

short TlsStream::wanted() const noexcept { return static_cast<short>(POLLIN | (out_begin_ < out_.size() ? POLLOUT : 0)); }

void TlsStream::shut() const noexcept { (void)::shutdown(fd_, SHUT_RDWR); }

}  // namespace troupe::detail
