#pragma once

#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "../text/vocabulary.hpp"

namespace troupe::detail {

/// Ids of words seen before. At most a few megabytes: when it is full it begins anew.
///
/// Threads: one.
class WordCache {
 public:
  static constexpr std::size_t kMaxWordBytes = 64;

  /// Appends the ids of `word` to `out`, asking `make(word, out)` for a word that is not here.
  template <class Id, class F>
  void append(std::string_view word, std::vector<Id>& out, F&& make) {
    if (word.size() > kMaxWordBytes) {
      fresh_.clear();
      make(word, fresh_);
      out.insert(out.end(), fresh_.begin(), fresh_.end());
      return;
    }
    const auto hash = hash_bytes(word);
    auto at = static_cast<std::size_t>(hash) & kMask;
    for (; slots_[at].used; at = (at + 1) & kMask) {
      const auto& slot = slots_[at];
      if (slot.hash != static_cast<std::uint32_t>(hash >> 32) || slot.word_bytes != word.size() ||
          std::memcmp(words_.data() + slot.word_at, word.data(), word.size()) != 0)
        continue;
      if (slot.num_ids == 1) return out.push_back(slot.id);
      const auto begin = ids_.begin() + slot.id;
      out.insert(out.end(), begin, begin + slot.num_ids);
      return;
    }
    fresh_.clear();
    make(word, fresh_);
    out.insert(out.end(), fresh_.begin(), fresh_.end());
    insert(at, word, hash);
  }

 private:
  static constexpr std::size_t kSlots = 1U << 16, kMask = kSlots - 1;
  struct Slot {
    std::uint32_t hash = 0, word_at = 0;
    std::int32_t id = 0;  // the only one, or where they begin in ids_
    std::uint16_t num_ids = 0;
    std::uint8_t word_bytes = 0;
    bool used = false;
  };

  void insert(std::size_t at, std::string_view word, std::uint64_t hash) {
    if (fresh_.size() > UINT16_MAX) return;
    if (++count_ > kSlots / 2) {
      slots_.assign(kSlots, {});
      words_.clear();
      ids_.clear();
      count_ = 1;
      at = static_cast<std::size_t>(hash) & kMask;
    }
    Slot slot{
        static_cast<std::uint32_t>(hash >> 32),    static_cast<std::uint32_t>(words_.size()), 0,
        static_cast<std::uint16_t>(fresh_.size()), static_cast<std::uint8_t>(word.size()),    true};
    words_ += word;
    if (fresh_.size() == 1) {
      slot.id = fresh_.front();
    } else {
      slot.id = static_cast<std::int32_t>(ids_.size());
      ids_.insert(ids_.end(), fresh_.begin(), fresh_.end());
    }
    slots_[at] = slot;
  }

  std::vector<Slot> slots_ = std::vector<Slot>(kSlots);
  std::string words_;
  std::vector<std::int32_t> ids_, fresh_;
  std::size_t count_ = 0;
};

}  // namespace troupe::detail
