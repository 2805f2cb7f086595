#include "private_file.hpp"

#include "certificate.hpp"

#include <troupe/errors.hpp>

#include <openssl/rand.h>
#include <sys/stat.h>

#include <fcntl.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <iterator>

namespace troupe::detail {

namespace {

constexpr std::size_t token_bytes = 32;

[[noreturn]] void fail(const std::filesystem::path& path, const char* what) {
  throw Failure{Errc::StorageUnavailable, path.string() + ": " + what + ": " + std::strerror(errno)};
}

void write_all(int file, const std::string& bytes, const std::filesystem::path& path) {
  for (std::size_t done = 0; done < bytes.size();) {
    const auto size = ::write(file, bytes.data() + done, bytes.size() - done);
    if (size < 0 && errno == EINTR) continue;
    if (size <= 0) fail(path, "cannot be written");
    done += static_cast<std::size_t>(size);
  }
  if (::fsync(file) != 0) fail(path, "cannot be synced");
}

int digit_of(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  return -1;
}

}  // namespace

void write_file(const std::filesystem::path& path, const std::string& bytes, unsigned mode, Replace replace) {
  const auto temporary = path.parent_path() / ("." + path.filename().string() + ".new-" + std::to_string(::getpid()));
  const int file = ::open(temporary.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
  if (file < 0) fail(temporary, "cannot be made");
  try {
    write_all(file, bytes, temporary);
    if (::fchmod(file, mode) != 0) fail(temporary, "cannot get its permissions");
    // A name that exists makes link() fail, whoever made it meanwhile.
    const int named = replace == Replace::Yes ? ::rename(temporary.c_str(), path.c_str()) : ::link(temporary.c_str(), path.c_str());
    if (named != 0 && errno == EEXIST) throw Failure{Errc::AlreadyExists, path.string() + " is there already; it is not replaced"};
    if (named != 0) fail(path, "cannot be made");
  } catch (...) {
    ::close(file);
    ::unlink(temporary.c_str());
    throw;
  }
  ::close(file);
  if (replace == Replace::No) ::unlink(temporary.c_str());
}

std::string read_small_file(const std::filesystem::path& path) {
  std::ifstream file{path, std::ios::binary};
  if (!file) throw Failure{Errc::FileNotFound, path.string() + ": cannot be read; is it there, and may this user read it?"};
  return {std::istreambuf_iterator<char>{file}, {}};
}

void must_be_private(const std::filesystem::path& path) {
  struct stat status {};
  if (::stat(path.c_str(), &status) != 0) throw Failure{Errc::FileNotFound, path.string() + ": " + std::strerror(errno)};
  if ((status.st_mode & 077U) == 0) return;
  std::array<char, 8> mode{};
  std::snprintf(mode.data(), mode.size(), "%04o", static_cast<unsigned>(status.st_mode & 07777U));
  throw Failure{Errc::InvalidConfig, path.string() + ": others than its owner may use it (mode " + mode.data() + "); make it private: chmod 600 " + path.string()};
}

std::string make_token() {
  std::array<unsigned char, token_bytes> bytes{};
  if (RAND_bytes(bytes.data(), static_cast<int>(bytes.size())) != 1) throw Failure{Errc::Internal, "OpenSSL: no random bytes: " + openssl_reason()};
  std::string text;
  for (const unsigned byte : bytes) {
    text += "0123456789abcdef"[byte >> 4U];
    text += "0123456789abcdef"[byte & 15U];
  }
  return text + "\n";
}

std::string read_token(const std::filesystem::path& path) {
  must_be_private(path);
  const auto text = read_small_file(path);
  std::string bytes;
  for (std::size_t i = 0; i + 1 < text.size() && bytes.size() < token_bytes; i += 2) {
    const int high = digit_of(text[i]), low = digit_of(text[i + 1]);
    if (high < 0 || low < 0) break;
    bytes += static_cast<char>(high * 16 + low);
  }
  if (bytes.size() != token_bytes || text.find_first_not_of("\r\n", 2 * token_bytes) != std::string::npos) {
    throw Failure{Errc::FileCorrupt, path.string() + ": is no token (64 hexadecimal digits); copy it again from where troupe certs init made it"};
  }
  return bytes;
}

}  // namespace troupe::detail
