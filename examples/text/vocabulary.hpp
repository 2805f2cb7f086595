#pragma once

#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>
#include <vector>

namespace troupe::detail {

/// The 128 bits of a · b, folded into 64.
[[nodiscard]] inline std::uint64_t folded_product(std::uint64_t a, std::uint64_t b) noexcept {
  __extension__ using Wide = unsigned __int128;
  const auto product = static_cast<Wide>(a) * b;
  return static_cast<std::uint64_t>(product) ^ static_cast<std::uint64_t>(product >> 64);
}

/// A quick hash of short strings, eight bytes at a time. Not for strangers' keys where collisions
/// would hurt.
[[nodiscard]] inline std::uint64_t hash_bytes(std::string_view text) noexcept {
  constexpr std::uint64_t factor = 0x9E3779B97F4A7C15U;
  std::uint64_t hash = text.size() * factor, word = 0;
  const char* at = text.data();
  auto left = text.size();
  for (; left >= 8; left -= 8, at += 8) {
    std::memcpy(&word, at, 8);
    hash = folded_product(hash ^ word, factor);
  }
  word = 0;
  std::memcpy(&word, at, left);
  return folded_product(hash ^ word, 0xD6E8FEB86659FD93U);
}

/// Tokens by id and ids by token, in three blocks of memory.
///
/// Threads: const members, any number at once.
class Vocabulary {
 public:
  static constexpr std::int32_t kNone = -1;

  /// The id of the next token is its place. Two equal tokens: the later one's id is found.
  void add(std::string_view token);
  /// An id that no token has.
  void add_hole();
  /// The id, or kNone.
  [[nodiscard]] std::int32_t find(std::string_view token) const noexcept {
    return find(token, hash_bytes(token));
  }
  [[nodiscard]] std::string_view token(std::int32_t id) const noexcept {
    const auto i = static_cast<std::size_t>(id);
    return std::string_view{bytes_}.substr(begin_[i], begin_[i + 1] - begin_[i]);
  }
  [[nodiscard]] bool has(std::int64_t id) const noexcept {
    return id >= 0 && static_cast<std::size_t>(id) < size() && !hole_[static_cast<std::size_t>(id)];
  }
  [[nodiscard]] std::size_t size() const noexcept { return begin_.size() - 1; }  ///< largest id + 1
  [[nodiscard]] std::size_t count() const noexcept { return count_; }            ///< without holes
  [[nodiscard]] std::size_t longest_bytes() const noexcept { return longest_; }

 private:
  struct Slot {
    std::uint32_t hash = 0;
    std::int32_t id = kNone;
  };
  [[nodiscard]] std::int32_t find(std::string_view token, std::uint64_t hash) const noexcept;
  void insert(std::int32_t id, std::uint64_t hash);
  void grow();

  std::string bytes_;
  std::vector<std::size_t> begin_ = {0};
  std::vector<bool> hole_;
  std::vector<Slot> slots_ = std::vector<Slot>(16);
  std::size_t count_ = 0, longest_ = 0;
};

}  // namespace troupe::detail
