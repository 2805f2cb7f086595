#pragma once

#include <troupe/manifest.hpp>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string_view>
#include <vector>

namespace troupe {

/// XXH3-64 (xxhash 0.8's stable one, seed 0), with the widest vectors of this processor.
[[nodiscard]] std::uint64_t digest_of(std::span<const std::byte> bytes) noexcept;
[[nodiscard]] std::uint64_t digest_of(std::string_view bytes) noexcept;
/// The same of bytes that come in parts.
class DigestStream {
 public:
  DigestStream();
  ~DigestStream();
  DigestStream(const DigestStream&) = delete;
  DigestStream& operator=(const DigestStream&) = delete;
  void update(std::span<const std::byte> bytes) noexcept;
  [[nodiscard]] std::uint64_t value() const noexcept;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

/// A file's digest: over its segments' begin (8 bytes), length (4) and digest (8), little-endian, by offset.
[[nodiscard]] std::uint64_t digest_of(const std::vector<Segment>& segments);

}  // namespace troupe
