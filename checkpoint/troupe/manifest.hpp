#pragma once

#include <troupe/metrics.hpp>
#include <troupe/safetensors.hpp>

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

// What a committed checkpoint says of itself: manifest.troupe, and manifest.json for people.

namespace troupe {

/// Bytes [begin, begin + length) of a file and their XXH3-64: what is written, read and verified as one.
struct Segment {
  std::uint64_t begin = 0;
  std::uint32_t length = 0;  ///< at most segment_bytes
  std::uint64_t digest = 0;
  bool operator==(const Segment&) const = default;
};

/// Segments are cut at multiples of this, and where one rank's bytes end and another's begin.
constexpr std::uint64_t segment_bytes = 4 << 20;

/// Bytes [begin, end) of a file that a rank wrote; rank -1: the driver, from what ranks left beside their own files.
struct WrittenRun {
  std::int32_t rank = 0;
  std::uint64_t begin = 0;
  std::uint64_t end = 0;
  bool operator==(const WrittenRun&) const = default;
};

/// A file of a checkpoint.
struct FileRecord {
  std::string name;  ///< relative to the directory, '/' between folders; never absolute, never with ".."
  std::uint64_t size = 0;
  std::uint64_t digest = 0;         ///< XXH3-64 over (begin, length, digest) of its segments, little-endian
  std::vector<Segment> segments;    ///< by offset; they tile the file
  std::vector<WrittenRun> writers;  ///< by offset; they tile the file
  bool operator==(const FileRecord&) const = default;
};

/// Where one tensor of a stem ("model", "optimizer") lies: whole, row-major, in one file.
struct StoredTensor {
  std::string stem;
  std::string name;
  SafetensorsDtype dtype = SafetensorsDtype::F32;
  std::vector<std::uint64_t> shape;
  std::uint32_t file = 0;   ///< place in Manifest::files
  std::uint64_t begin = 0;  ///< offset in that file
  std::uint64_t bytes = 0;
  bool operator==(const StoredTensor&) const = default;
};

constexpr const char* manifest_name = "manifest.troupe";
constexpr const char* manifest_json_name = "manifest.json";

/// What manifest.troupe holds: everything that a committed checkpoint's directory must hold, but for itself.
struct Manifest {
  std::uint64_t index = 0;    ///< of the report that it came with
  std::uint64_t attempt = 0;  ///< that wrote it; 0 when its files were made without `write_part`
  std::int32_t num_writers = 1;
  std::int32_t world_size = 0;  ///< 0 as above, and so on
  std::int64_t step = 0;
  std::int64_t epoch = 0;
  std::string strategy;
  Metrics metrics;
  std::vector<FileRecord> files;      ///< by name
  std::vector<StoredTensor> tensors;  ///< by stem, then by place
  bool operator==(const Manifest&) const = default;

  [[nodiscard]] const FileRecord* find_file(std::string_view name) const noexcept;
  [[nodiscard]] const StoredTensor* find_tensor(std::string_view stem, std::string_view name) const noexcept;
};

/// The bytes of manifest.troupe: a mark, a version, the contents, and the XXH3-64 of all that.
[[nodiscard]] std::string to_bytes(const Manifest& manifest);
/// Checks all that can be known without the files: digest, names, that segments and writers tile each file and tensors lie
/// inside. Memory is bounded by the bytes given. Throws Failure{FileCorrupt} that begins with `what`.
[[nodiscard]] Manifest manifest_from_bytes(std::span<const std::byte> bytes, std::string_view what);
/// The text of manifest.json: the same for people, without the segments.
[[nodiscard]] std::string to_text(const Manifest& manifest);

}  // namespace troupe
