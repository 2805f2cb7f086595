#include <troupe/config.hpp>
#include <troupe/errors.hpp>
#include <troupe/storage_path.hpp>

#include <algorithm>
#include <istream>
#include <ostream>

namespace troupe {

namespace {

[[noreturn]] void refuse(const std::string& url, const std::string& why) {
  throw Failure{Errc::InvalidConfig, "storage_path '" + url + "': " + why};
}

bool is_bucket(const std::string& name) {
  const auto allowed = [](char c) { return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '-' || c == '.' || c == '_'; };
  return name.size() >= 3 && name.size() <= 63 && std::all_of(name.begin(), name.end(), allowed);
}

// "a//b/" -> "a/b"; nothing where a part is "." or "..", or has a control character.
std::string clean_prefix(const std::string& url, const std::string& raw) {
  std::string clean;
  for (std::size_t begin = 0; begin <= raw.size();) {
    const auto end = std::min(raw.find('/', begin), raw.size());
    const auto part = raw.substr(begin, end - begin);
    if (part == "." || part == "..") refuse(url, "'" + part + "' is no part of an object's key");
    if (std::any_of(part.begin(), part.end(), [](char c) { return static_cast<unsigned char>(c) < 0x20 || c == 0x7f; })) {
      refuse(url, "its prefix holds a control character");
    }
    if (!part.empty()) clean += (clean.empty() ? "" : "/") + part;
    begin = end + 1;
  }
  return clean;
}

void read_options(StoreUrl& made, const std::string& url, const std::string& query) {
  for (std::size_t begin = 0; begin < query.size();) {
    const auto end = std::min(query.find('&', begin), query.size());
    const auto option = query.substr(begin, end - begin);
    const auto equals = std::min(option.find('='), option.size());
    const auto name = option.substr(0, equals);
    const auto value = equals < option.size() ? option.substr(equals + 1) : "";
    if (name == "region") {
      made.region = value;
    } else if (name == "endpoint_override" || name == "endpoint") {
      made.endpoint = value;
    } else {
      const auto nearest = nearest_name(name, {"region", "endpoint_override"});
      refuse(url, "the option '" + name + "' is unknown; " + (nearest.empty() ? "there are region and endpoint_override" : "did you mean '" + nearest + "'?"));
    }
    begin = end + 1;
  }
}

}  // namespace

std::filesystem::path StoragePath::directory() const {
  if (is_url()) throw Failure{Errc::InvalidArgument, "'" + text_ + "' is no directory"};
  return text_;
}

std::ostream& operator<<(std::ostream& out, const StoragePath& path) { return out << path.text(); }

std::istream& operator>>(std::istream& in, StoragePath& path) {
  std::string text;
  std::getline(in, text);
  path = StoragePath{std::move(text)};
  return in;
}

StoreUrl parse_store_url(const std::string& text) {
  const auto question = std::min(text.find('?'), text.size());
  const auto place = text.substr(0, question);
  const auto authority = place.substr(0, place.find('/', std::min(place.find("://"), place.size() - 1) + 3));
  const auto query = text.substr(question);
  if (authority.find('@') != std::string::npos || query.find("key=") != std::string::npos || query.find("token=") != std::string::npos) {
    throw Failure{Errc::InvalidConfig, "storage_path holds credentials (it is not shown for that reason); put them into "
                                       "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or into ~/.aws/credentials"};
  }
  const auto scheme = place.substr(0, place.find("://"));
  if (scheme != "s3") refuse(place, "the scheme '" + scheme + "' is unknown; there are directories and s3://bucket/prefix");
  const auto rest = place.substr(5);
  const auto slash = std::min(rest.find('/'), rest.size());
  StoreUrl made;
  made.bucket = rest.substr(0, slash);
  if (made.bucket.empty()) refuse(place, "it names no bucket; write s3://bucket/prefix");
  if (!is_bucket(made.bucket)) refuse(place, "'" + made.bucket + "' is no bucket's name: 3 to 63 of a-z, 0-9, '-', '.'");
  made.prefix = clean_prefix(place, slash < rest.size() ? rest.substr(slash + 1) : "");
  if (question < text.size()) read_options(made, place, text.substr(question + 1));
  return made;
}

}  // namespace troupe
