#pragma once

#include <filesystem>
#include <iosfwd>
#include <map>
#include <string>

namespace troupe {

/// Where runs are kept: a directory ("results"), or a place in an S3-compatible object store ("s3://bucket/prefix").
/// Made from a path, a string or a literal; nothing is checked before `validate(RunConfig)`.
class StoragePath {
 public:
  StoragePath() = default;
  StoragePath(const std::filesystem::path& path) : text_(path.string()) {}  // NOLINT: all three are meant to be implicit
  StoragePath(std::string text) : text_(std::move(text)) {}                 // NOLINT
  StoragePath(const char* text) : text_(text) {}                            // NOLINT
  [[nodiscard]] const std::string& text() const noexcept { return text_; }
  [[nodiscard]] bool empty() const noexcept { return text_.empty(); }
  /// Whether it is "scheme://…" rather than a directory.
  [[nodiscard]] bool is_url() const noexcept { return text_.find("://") != std::string::npos; }
  /// The directory. Throws Failure{InvalidArgument} for a URL.
  [[nodiscard]] std::filesystem::path directory() const;
  bool operator==(const StoragePath&) const = default;

 private:
  std::string text_;
};

std::ostream& operator<<(std::ostream& out, const StoragePath& path);
std::istream& operator>>(std::istream& in, StoragePath& path);

/// "s3://bucket/some/prefix?region=eu-central-1&endpoint_override=http://localhost:9000", taken apart.
struct StoreUrl {
  std::string bucket;
  std::string prefix;                          ///< no slash at either end; may be empty
  std::string region;                          ///< empty: as the environment or configuration file says
  std::string endpoint;                        ///< "http://host:port"; empty: AWS_ENDPOINT_URL_S3, AWS_ENDPOINT_URL, then Amazon's
  /// "s3://bucket/prefix", without options.
  [[nodiscard]] std::string text() const { return "s3://" + bucket + (prefix.empty() ? "" : "/" + prefix); }
};

/// Throws Failure{InvalidConfig}: another scheme, no bucket, a bad bucket name, `..` in the prefix, an unknown option (with
/// the nearest name), or credentials, which belong in the environment; those are not repeated in the text.
[[nodiscard]] StoreUrl parse_store_url(const std::string& text);

}  // namespace troupe
