#include "digest.hpp"

#define XXH_STATIC_LINKING_ONLY  // the size of a stream's state
#include <xxhash.h>

#include <string>

#if defined(__x86_64__) && __has_include(<xxh_x86dispatch.h>)
#include <xxh_x86dispatch.h>  // renames XXH3_64bits to the one that looks at the processor
#endif

namespace troupe {

namespace {

template <class T>
void append(std::string& out, T value) {
  for (std::size_t i = 0; i < sizeof value; ++i) out.push_back(static_cast<char>(value >> (8 * i) & 0xFF));
}

}  // namespace

std::uint64_t digest_of(std::span<const std::byte> bytes) noexcept { return XXH3_64bits(bytes.data(), bytes.size()); }

std::uint64_t digest_of(std::string_view bytes) noexcept { return XXH3_64bits(bytes.data(), bytes.size()); }

struct DigestStream::State {
  XXH3_state_t xxh;  // aligned to 64 bytes
};

DigestStream::DigestStream() : state_(std::make_unique<State>()) { XXH3_64bits_reset(&state_->xxh); }
DigestStream::~DigestStream() = default;
void DigestStream::update(std::span<const std::byte> bytes) noexcept { XXH3_64bits_update(&state_->xxh, bytes.data(), bytes.size()); }
std::uint64_t DigestStream::value() const noexcept { return XXH3_64bits_digest(&state_->xxh); }

std::uint64_t digest_of(const std::vector<Segment>& segments) {
  std::string bytes;
  bytes.reserve(segments.size() * 20);
  for (const auto& segment : segments) {
    append(bytes, segment.begin);
    append(bytes, segment.length);
    append(bytes, segment.digest);
  }
  return digest_of(std::string_view{bytes});
}

}  // namespace troupe
