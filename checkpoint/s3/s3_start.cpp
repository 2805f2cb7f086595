#include "s3_start.hpp"

#include <arrow/io/interfaces.h>

#include <algorithm>
#include <cstdlib>
#include <mutex>

namespace troupe {

namespace {

/// A few quick tries of one request; what lasts longer is the caller's to wait out.
class QuickRetries final : public arrow::fs::S3RetryStrategy {
 public:
  explicit QuickRetries(int tries) : tries_(tries) {}
  bool ShouldRetry(const AWSErrorDetail& error, std::int64_t retries) override { return error.should_retry && retries + 1 < tries_; }
  std::int64_t CalculateDelayBeforeNextRetry(const AWSErrorDetail&, std::int64_t retries) override { return 100 << std::min<std::int64_t>(retries, 4); }

 private:
  int tries_;
};

std::string environment(const char* name) {
  const char* value = std::getenv(name);
  return value ? value : "";
}

}  // namespace

arrow::fs::S3Options options_for(const StoreUrl& url, const S3Settings& settings) {
  auto options = arrow::fs::S3Options::Defaults();
  auto endpoint = url.endpoint;
  for (const char* name : {"AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"}) {
    if (endpoint.empty()) endpoint = environment(name);
  }
  options.region = url.region;
  if (!endpoint.empty()) {
    const auto colon = endpoint.find("://");
    if (colon != std::string::npos) options.scheme = endpoint.substr(0, colon);
    options.endpoint_override = colon == std::string::npos ? endpoint : endpoint.substr(colon + 3);
    while (options.endpoint_override.ends_with('/')) options.endpoint_override.pop_back();
    // Else the SDK asks an instance's metadata service, which takes seconds where there is none.
    if (options.region.empty() && environment("AWS_REGION").empty() && environment("AWS_DEFAULT_REGION").empty()) options.region = "us-east-1";
  }
  options.connect_timeout = static_cast<double>(settings.connect_timeout.count()) / 1000;
  options.request_timeout = static_cast<double>(settings.request_timeout.count()) / 1000;
  options.allow_delayed_open = true;  // small objects take one request
  options.retry_strategy = std::make_shared<QuickRetries>(settings.num_quick_tries);
  return options;
}

void shut_down_at_exit() {
  std::atexit([] { (void)arrow::fs::EnsureS3Finalized(); });
}

void start_s3_once(const S3Settings& settings) {
  static std::once_flag once;
  std::call_once(once, [&] {
    auto options = arrow::fs::S3GlobalOptions::Defaults();
    // Failures are ours to report, with what to do; the SDK's own lines would come between a program's output.
    if (environment("ARROW_S3_LOG_LEVEL").empty()) options.log_level = arrow::fs::S3LogLevel::Off;
    const auto status = arrow::fs::InitializeS3(options);
    if (!status.ok()) throw StoreFailure{StoreError::Local, "cannot start the S3 library: " + status.message()};
    (void)arrow::io::SetIOThreadPoolCapacity(settings.num_connections);
  });
}

}  // namespace troupe
