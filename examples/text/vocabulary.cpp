#include "vocabulary.hpp"

#include <algorithm>

namespace troupe::detail {

void Vocabulary::add(std::string_view token) {
  if ((count_ + 1) * 2 > slots_.size()) grow();
  const auto id = static_cast<std::int32_t>(size());
  bytes_ += token;
  begin_.push_back(bytes_.size());
  hole_.push_back(false);
  ++count_;
  longest_ = std::max(longest_, token.size());
  insert(id, hash_bytes(token));
}

void Vocabulary::add_hole() {
  begin_.push_back(bytes_.size());
  hole_.push_back(true);
}

std::int32_t Vocabulary::find(std::string_view text, std::uint64_t hash) const noexcept {
  const auto mask = slots_.size() - 1;
  const auto high = static_cast<std::uint32_t>(hash >> 32);
  for (auto at = static_cast<std::size_t>(hash) & mask;; at = (at + 1) & mask) {
    const auto& slot = slots_[at];
    if (slot.id == kNone) return kNone;
    if (slot.hash == high && token(slot.id) == text) return slot.id;
  }
}

void Vocabulary::insert(std::int32_t id, std::uint64_t hash) {
  const auto mask = slots_.size() - 1;
  const auto high = static_cast<std::uint32_t>(hash >> 32);
  const auto text = token(id);
  for (auto at = static_cast<std::size_t>(hash) & mask;; at = (at + 1) & mask) {
    auto& slot = slots_[at];
    if (slot.id != kNone && !(slot.hash == high && token(slot.id) == text)) continue;
    slot = {high, id};
    return;
  }
}

void Vocabulary::grow() {
  slots_.assign(slots_.size() * 2, {});
  for (std::size_t id = 0; id < size(); ++id) {
    if (!hole_[id])
      insert(static_cast<std::int32_t>(id), hash_bytes(token(static_cast<std::int32_t>(id))));
  }
}

}  // namespace troupe::detail
