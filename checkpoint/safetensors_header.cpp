#include <algorithm>
#include <array>
#include <limits>
#include <troupe/errors.hpp>
#include <troupe/safetensors.hpp>
#include <unordered_map>
#include <utility>

#include "safetensors_json.hpp"
#include "safetensors_layout.hpp"

namespace troupe {
namespace {

using detail::HeaderJson;

constexpr std::uint64_t kMaxHeaderBytes = 100'000'000;  // safetensors' own limit

struct DtypeRow {
  std::string_view name;
  std::uint64_t bits;
};
constexpr std::array<DtypeRow, 22> kDtypes{
    {{"BOOL", 8},        {"F4", 4},      {"F6_E2M3", 6}, {"F6_E3M2", 6}, {"U8", 8},
     {"I8", 8},          {"F8_E5M2", 8}, {"F8_E4M3", 8}, {"F8_E8M0", 8}, {"F8_E4M3FNUZ", 8},
     {"F8_E5M2FNUZ", 8}, {"I16", 16},    {"U16", 16},    {"F16", 16},    {"BF16", 16},
     {"I32", 32},        {"U32", 32},    {"F32", 32},    {"C64", 64},    {"F64", 64},
     {"I64", 64},        {"U64", 64}}};

/// Reads the dtype of tensor `entry`: a string, or {"F32": null}, which serde takes for the same.
SafetensorsDtype read_dtype(HeaderJson& json, const std::string& entry) {
  std::string word;
  if (json.peek() == '{') {
    int members = 0;
    json.object([&](std::string key) {
      word = std::move(key);
      json.null();
      ++members;
    });
    if (members != 1) json.fail("has a malformed dtype in tensor '" + entry + "'");
  } else {
    word = json.string();
  }
  const auto dtype = safetensors_dtype(word);
  if (!dtype) json.fail("has the unknown dtype '" + word + "' in tensor '" + entry + "'");
  return *dtype;
}

std::vector<std::uint64_t> read_numbers(HeaderJson& json) {
  std::vector<std::uint64_t> out;
  json.array([&] { out.push_back(json.unsigned_integer()); });
  return out;
}

void read_offsets(HeaderJson& json, SafetensorsEntry& entry) {
  const auto offsets = read_numbers(json);
  if (offsets.size() != 2)
    json.fail("has data_offsets that are not two numbers in tensor '" + entry.name + "'");
  entry.begin = offsets[0];
  entry.end = offsets[1];
}

/// One tensor's entry: an object, or the array of its three fields, which serde takes for the same.
SafetensorsEntry read_entry(HeaderJson& json, std::string name) {
  SafetensorsEntry entry;
  entry.name = std::move(name);
  int field = 0;
  if (json.peek() == '[') {
    json.array([&] {
      switch (field++) {
        case 0:
          entry.dtype = read_dtype(json, entry.name);
          break;
        case 1:
          entry.shape = read_numbers(json);
          break;
        case 2:
          read_offsets(json, entry);
          break;
        default:
          json.fail("has more than three fields in tensor '" + entry.name + "'");
      }
    });
    if (field != 3) json.fail("has too few fields in tensor '" + entry.name + "'");
    return entry;
  }
  constexpr std::array<std::string_view, 3> fields{"dtype", "shape", "data_offsets"};
  std::array<bool, 3> seen{};
  json.object([&](const std::string& key) {
    const auto which = static_cast<std::size_t>(std::ranges::find(fields, key) - fields.begin());
    if (which == fields.size()) return json.skip_value();
    if (std::exchange(seen[which], true))
      json.fail("has '" + key + "' twice in tensor '" + entry.name + "'");
    if (which == 0) entry.dtype = read_dtype(json, entry.name);
    if (which == 1) entry.shape = read_numbers(json);
    if (which == 2) read_offsets(json, entry);
  });
  for (std::size_t i = 0; i < fields.size(); ++i) {
    if (!seen[i])
      json.fail("lacks '" + std::string(fields[i]) + "' in tensor '" + entry.name + "'");
  }
  return entry;
}

SafetensorsHeader read_json(std::string_view text, std::string_view what) {
  HeaderJson json{text, what};
  SafetensorsHeader header;
  std::unordered_map<std::string, std::size_t> places;
  bool metadata_seen = false;
  json.object([&](std::string key) {
    if (key == "__metadata__") {
      if (std::exchange(metadata_seen, true)) json.fail("has '__metadata__' twice");
      if (json.peek() == 'n') return json.null();
      return json.object(
          [&](std::string name) { header.metadata[std::move(name)] = json.string(); });
    }
    auto entry = read_entry(json, key);
    const auto [place, is_new] = places.try_emplace(std::move(key), header.tensors.size());
    if (is_new) {
      header.tensors.push_back(std::move(entry));
    } else {
      header.tensors[place->second] = std::move(entry);  // as in the reference, the last one wins
    }
  });
  json.end();
  return header;
}

std::optional<std::uint64_t> product(std::uint64_t a, std::uint64_t b) noexcept {
  std::uint64_t out = 0;
  return __builtin_mul_overflow(a, b, &out) ? std::nullopt : std::optional{out};
}

/// Checks that the tensors cover [0, end) in order, and returns the end.
std::uint64_t check_layout(const std::vector<SafetensorsEntry>& tensors, std::string_view what) {
  std::uint64_t at = 0;
  for (const auto& t : tensors) {
    const auto refuse = [&](const std::string& text) {
      throw Failure{Errc::FileCorrupt, std::string(what) + ": tensor '" + t.name + "' " + text};
    };
    const auto range = std::to_string(t.begin) + " to " + std::to_string(t.end);
    if (t.begin != at || t.end < t.begin) {
      refuse("lies at bytes " + range + ", but the tensor before it ends at " + std::to_string(at));
    }
    std::optional<std::uint64_t> bits = 1;
    for (const auto size : t.shape) bits = bits ? product(*bits, size) : bits;
    bits = bits ? product(*bits, bits_of(t.dtype)) : bits;
    if (!bits) refuse("has a shape whose size exceeds 64 bits");
    if (*bits % 8 != 0) refuse("does not end at a whole byte");
    if (*bits / 8 != t.end - t.begin) {
      refuse("has " + std::to_string(t.end - t.begin) + " bytes (" + range + "), but its dtype " +
             std::string(name(t.dtype)) + " and shape need " + std::to_string(*bits / 8));
    }
    at = t.end;
  }
  return at;
}

}  // namespace

std::string_view name(SafetensorsDtype dtype) noexcept {
  return kDtypes[static_cast<std::size_t>(dtype)].name;
}

std::uint64_t bits_of(SafetensorsDtype dtype) noexcept {
  return kDtypes[static_cast<std::size_t>(dtype)].bits;
}

std::optional<SafetensorsDtype> safetensors_dtype(std::string_view name) noexcept {
  const auto found = std::ranges::find(kDtypes, name, &DtypeRow::name);
  if (found == kDtypes.end()) return std::nullopt;
  return static_cast<SafetensorsDtype>(found - kDtypes.begin());
}

SafetensorsHeader detail::parse_safetensors_head(std::span<const std::byte> head,
                                                 std::uint64_t file_bytes, std::string_view what) {
  const auto refuse = [&](const std::string& text) {
    throw Failure{Errc::FileCorrupt, std::string(what) + ": " + text};
  };
  if (file_bytes < 8 || head.size() < 8)
    refuse("is no safetensors file: it has " + std::to_string(file_bytes) +
           " bytes, fewer than 8");
  std::uint64_t length = 0;
  for (int i = 7; i >= 0; --i)
    length = length << 8 | std::to_integer<std::uint64_t>(head[static_cast<std::size_t>(i)]);
  if (length > kMaxHeaderBytes) {
    refuse("is no safetensors file: its header would have " + std::to_string(length) +
           " bytes, the limit is 100000000");
  }
  if (length > file_bytes - 8 || length > head.size() - 8) {
    refuse("is cut off: the header should have " + std::to_string(length) +
           " bytes, the file has " + std::to_string(file_bytes));
  }
  const std::string_view text{reinterpret_cast<const char*>(head.data()) + 8, length};
  if (const auto bad = detail::find_invalid_utf8(text); bad != std::string_view::npos) {
    refuse("the header is not UTF-8 (byte " + std::to_string(bad) + " of the header)");
  }
  auto header = read_json(text, what);
  header.data_begin = 8 + length;
  std::ranges::stable_sort(header.tensors, {}, [](const auto& t) {
    return std::pair{t.begin, t.end};
  });
  const auto data_bytes = check_layout(header.tensors, what);
  if (const auto there = file_bytes - header.data_begin; data_bytes != there) {
    refuse(data_bytes > there
               ? "is cut off: the tensors need " + std::to_string(data_bytes) +
                     " bytes after the header, there are " + std::to_string(there)
               : "has " + std::to_string(there - data_bytes) + " bytes after its last tensor");
  }
  return header;
}

SafetensorsHeader parse_safetensors(std::span<const std::byte> file, std::string_view what) {
  return detail::parse_safetensors_head(file, file.size(), what);
}

}  // namespace troupe
