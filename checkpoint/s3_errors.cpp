#include <troupe/s3.hpp>

#include <array>
#include <utility>

namespace troupe {

namespace {

// In order: the first piece of text that is found decides. Names are Amazon's error codes as its C++ SDK prints them.
constexpr std::pair<std::string_view, StoreError> pieces[] = {
    {"SLOW_DOWN", StoreError::Throttled},
    {"SlowDown", StoreError::Throttled},
    {"THROTTLING", StoreError::Throttled},
    {"REQUEST_LIMIT", StoreError::Throttled},
    {"HTTP status 429", StoreError::Throttled},
    {"HTTP status 503", StoreError::Throttled},
    {"NO_SUCH_BUCKET", StoreError::NoBucket},
    {"NoSuchBucket", StoreError::NoBucket},
    {"Cannot read past end", StoreError::PastEnd},
    {"INVALID_RANGE", StoreError::PastEnd},
    {"InvalidRange", StoreError::PastEnd},
    {"HTTP status 416", StoreError::PastEnd},
    {"NO_SUCH_KEY", StoreError::NotFound},
    {"RESOURCE_NOT_FOUND", StoreError::NotFound},
    {"Path does not exist", StoreError::NotFound},
    {"HTTP status 404", StoreError::NotFound},
    {"ACCESS_DENIED", StoreError::Denied},
    {"SIGNATURE", StoreError::Denied},
    {"INVALID_ACCESS_KEY_ID", StoreError::Denied},
    {"INVALID_CLIENT_TOKEN_ID", StoreError::Denied},
    {"MISSING_AUTHENTICATION", StoreError::Denied},
    {"UNRECOGNIZED_CLIENT", StoreError::Denied},
    {"REQUEST_TIME_TOO_SKEWED", StoreError::Denied},
    {"REQUEST_EXPIRED", StoreError::Denied},
    {"ExpiredToken", StoreError::Denied},
    {"HTTP status 400) during Head", StoreError::Denied},  // no or expired credentials: a HEAD has no body that would say so
    {"HTTP status 401", StoreError::Denied},
    {"HTTP status 403", StoreError::Denied},
    {"curlCode: 28,", StoreError::Timeout},
    {"REQUEST_TIMEOUT", StoreError::Timeout},
    {"RequestTimeout", StoreError::Timeout},
    {"HTTP status 408", StoreError::Timeout},
    {"curlCode: 18,", StoreError::Truncated},
    {"NETWORK_CONNECTION", StoreError::Connection},
    {"INTERNAL_FAILURE", StoreError::Server},
    {"InternalError", StoreError::Server},
    {"SERVICE_UNAVAILABLE", StoreError::Server},
    {"HTTP status 5", StoreError::Server},
};

bool has(std::string_view text, std::string_view piece) { return text.find(piece) != std::string_view::npos; }

}  // namespace

StoreError classify_s3_error(std::string_view text) noexcept {
  for (const auto& [piece, error] : pieces) {
    if (has(text, piece)) return error;
  }
  return StoreError::Refused;
}

std::string s3_advice(StoreError error, std::string_view text) {
  if (has(text, "SKEWED")) return "this host's clock is wrong: set it";
  if (has(text, "EXPIRED") || has(text, "ExpiredToken")) return "the credentials have expired: get new ones";
  if (error == StoreError::Denied) {
    return "check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (or AWS_PROFILE in ~/.aws/credentials), the region, and that they may read, write, list and delete there";
  }
  if (error == StoreError::NoBucket) return "make the bucket, or correct its name, region or endpoint";
  if (error == StoreError::Connection) return "check the endpoint (AWS_ENDPOINT_URL, or ?endpoint_override=http://host:port) and the network";
  if (has(text, "MissingContentLength") || has(text, "HTTP status 411") || has(text, "NOT_IMPLEMENTED") || has(text, "NotImplemented") ||
      has(text, "checksum")) {
    return "this store does not understand the checksums that Amazon's SDK sends by default: set AWS_REQUEST_CHECKSUM_CALCULATION=when_required";
  }
  return "";
}

}  // namespace troupe
