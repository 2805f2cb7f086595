#include <algorithm>
#include <troupe/safetensors.hpp>
#include <utility>

#include "mapped_file.hpp"

namespace troupe {

SafetensorsFile::SafetensorsFile(const std::filesystem::path& file) {
  auto mapped = detail::map_private(file);
  header_ = parse_safetensors(mapped.bytes, file.string());
  data_ = mapped.bytes.data() + header_.data_begin;
  mapping_ = std::move(mapped.keep);
}

const SafetensorsEntry* SafetensorsFile::find(std::string_view name) const noexcept {
  const auto found = std::ranges::find(header_.tensors, name, &SafetensorsEntry::name);
  return found == header_.tensors.end() ? nullptr : &*found;
}

std::span<std::byte> SafetensorsFile::bytes(const SafetensorsEntry& entry) const noexcept {
  return {data_ + entry.begin, static_cast<std::size_t>(entry.end - entry.begin)};
}

}  // namespace troupe
