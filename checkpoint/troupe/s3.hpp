#pragma once

#include <troupe/object_store.hpp>
#include <troupe/storage_path.hpp>

#include <chrono>
#include <cstdint>
#include <filesystem>
#include <memory>

namespace troupe {

/// How an S3-compatible store is talked to. Where it is and who we are comes from StoreUrl and the environment.
struct S3Settings {
  int num_connections = 4;                         ///< parts or ranges in flight
  std::uint64_t part_bytes = std::uint64_t{10} << 20;  ///< handed over at a time, 10 MiB at least; more for files of over 90 GB
  std::chrono::milliseconds connect_timeout{5'000};
  std::chrono::milliseconds request_timeout{20'000};  ///< longest time in which nothing moves
  int num_quick_tries = 3;                         ///< of one request, before the call fails
};

/// What libtroupe_s3.so exports under the name "troupe_s3_open": nullptr when it was built against another version.
using OpenS3Store = ObjectStore* (*)(int abi, const StoreUrl& url, const S3Settings& settings);
constexpr int kS3PluginAbi = 1;

/// Opens the bucket of `url`: loads libtroupe_s3.so (from the program's folder, its ../lib, or where the dynamic loader finds
/// it), which stays loaded until the process ends. Nothing is sent yet. Credentials as Amazon's SDK finds them: environment,
/// AWS_PROFILE in ~/.aws/credentials and ~/.aws/config, instance roles. Keys are relative to the bucket.
/// Throws Failure{Unsupported} when this build has no plug-in.
[[nodiscard]] std::unique_ptr<ObjectStore> open_s3_store(const StoreUrl& url, const S3Settings& settings = {},
                                                         const std::filesystem::path& library = "libtroupe_s3.so");

/// The class of an error of the S3 library by its text, which is all that it gives.
[[nodiscard]] StoreError classify_s3_error(std::string_view text) noexcept;
/// What a user can do about it; may be empty.
[[nodiscard]] std::string s3_advice(StoreError error, std::string_view text);

}  // namespace troupe
