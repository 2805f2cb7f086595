#include "archive.hpp"

#include "digest.hpp"

namespace troupe::detail {

std::string framed(std::string_view mark, std::uint32_t version, std::string_view contents) {
  std::string bytes{mark};
  bytes.append(reinterpret_cast<const char*>(&version), sizeof version);
  bytes.append(contents);
  const auto digest = digest_of(std::string_view{bytes});
  bytes.append(reinterpret_cast<const char*>(&digest), sizeof digest);
  return bytes;
}

std::string_view unframed(std::string_view bytes, std::string_view mark, std::uint32_t version, std::string_view what) {
  const auto refuse = [&](const std::string& why) { throw Failure{Errc::FileCorrupt, std::string(what) + ": " + why}; };
  std::uint32_t found_version = 0;
  std::uint64_t digest = 0;
  const auto head = mark.size() + sizeof found_version;
  if (bytes.size() < head + sizeof digest) refuse("is cut short: it has " + std::to_string(bytes.size()) + " bytes");
  if (!bytes.starts_with(mark)) refuse("does not begin as Troupe's files do");
  std::memcpy(&digest, bytes.data() + bytes.size() - sizeof digest, sizeof digest);
  if (digest != digest_of(bytes.substr(0, bytes.size() - sizeof digest)))
    refuse("is damaged: its bytes do not have the digest that it ends with");
  std::memcpy(&found_version, bytes.data() + mark.size(), sizeof found_version);
  if (found_version != version) {
    refuse("has version " + std::to_string(found_version) + ", this program reads " + std::to_string(version));
  }
  return bytes.substr(head, bytes.size() - head - sizeof digest);
}

}  // namespace troupe::detail
