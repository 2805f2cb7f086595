#include "zip_directory.hpp"

#include <algorithm>
#include <array>
#include <cstring>
#include <optional>
#include <troupe/errors.hpp>
#include <vector>

#include "little_endian.hpp"

namespace troupe::detail {
namespace {

constexpr std::uint32_t kLocal = 0x04034b50;
constexpr std::uint32_t kCentral = 0x02014b50;
constexpr std::uint32_t kEnd = 0x06054b50;
constexpr std::uint32_t kEnd64 = 0x06064b50;
constexpr std::uint32_t kLocator64 = 0x07064b50;
constexpr std::uint64_t kLocalBytes = 30;
constexpr std::uint64_t kCentralBytes = 46;
constexpr std::uint64_t kEndBytes = 22;
constexpr std::uint64_t kEnd64Bytes = 56;
constexpr std::uint64_t kLocator64Bytes = 20;
constexpr std::uint64_t kMaxComment = 0xFFFF;
constexpr std::uint32_t kAll32 = 0xFFFFFFFF;
constexpr std::uint16_t kAll16 = 0xFFFF;

/// Where the central directory lies.
struct Directory {
  std::uint64_t begin = 0;
  std::uint64_t end = 0;
  std::uint64_t entries = 0;
};

/// One record of the central directory.
struct Record {
  std::string name;
  std::uint64_t local = 0;  ///< offset of the local header
  std::uint64_t compressed = 0;
  std::uint16_t flags = 0;
  std::uint16_t method = 0;
  ZipEntry entry;
  std::uint64_t end = 0;  ///< of the data
};

class ZipReader {
 public:
  ZipReader(std::span<const std::byte> bytes, std::string_view what) : bytes_(bytes), what_(what) {}

  std::map<std::string, ZipEntry, std::less<>> read() {
    const auto directory = find_directory();
    auto records = read_records(directory);
    for (auto& record : records) read_local(record, directory.begin);
    check_disjoint(records);
    std::map<std::string, ZipEntry, std::less<>> out;
    for (auto& record : records) {
      if (!out.emplace(record.name, record.entry).second)
        refuse("the zip entry '" + record.name + "' is there twice");
    }
    return out;
  }

 private:
  [[noreturn]] void refuse(const std::string& text, Errc code = Errc::FileCorrupt) const {
    throw Failure{code, std::string(what_) + ": " + text};
  }
  template <class T>
  [[nodiscard]] T get(std::uint64_t at) const noexcept {
    return little_endian<T>(bytes_, at);
  }

  [[nodiscard]] std::uint64_t find_end() const {
    if (bytes_.size() < kEndBytes)
      refuse("is no zip archive: it has only " + std::to_string(bytes_.size()) + " bytes");
    const auto last = bytes_.size() - kEndBytes;
    const auto first = last - std::min<std::uint64_t>(last, kMaxComment);
    for (auto at = last + 1; at-- > first;) {
      if (get<std::uint32_t>(at) == kEnd &&
          get<std::uint16_t>(at + 20) == bytes_.size() - at - kEndBytes)
        return at;
    }
    refuse("is no zip archive, or is cut off: the end of its directory is missing");
  }

  [[nodiscard]] Directory find_directory() const {
    const auto end = find_end();
    Directory out;
    out.entries = get<std::uint16_t>(end + 10);
    const std::uint64_t size = get<std::uint32_t>(end + 12);
    out.begin = get<std::uint32_t>(end + 16);
    out.end = end;
    const bool single = get<std::uint16_t>(end + 4) == 0 && get<std::uint16_t>(end + 6) == 0 &&
                        get<std::uint16_t>(end + 8) == get<std::uint16_t>(end + 10);
    const bool wants64 = out.entries == kAll16 || size == kAll32 || out.begin == kAll32;
    if (!single && !wants64) refuse("is a zip archive of several volumes", Errc::Unsupported);
    if (end >= kLocator64Bytes && get<std::uint32_t>(end - kLocator64Bytes) == kLocator64)
      return find_directory64(end, out, size);
    if (wants64)
      refuse("the zip directory needs its 64-bit end, which is missing (byte " +
             std::to_string(end) + ")");
    return checked(out, size);
  }

  [[nodiscard]] Directory find_directory64(std::uint64_t end, const Directory& small,
                                           std::uint64_t small_size) const {
    const auto locator = end - kLocator64Bytes;
    const auto at = get<std::uint64_t>(locator + 8);
    if (at > locator || locator - at < kEnd64Bytes || get<std::uint32_t>(at) != kEnd64 ||
        get<std::uint64_t>(at + 4) != locator - at - 12)
      refuse("the 64-bit end of the zip directory is malformed (byte " + std::to_string(locator) +
             ")");
    Directory out;
    out.end = at;
    out.entries = get<std::uint64_t>(at + 32);
    const auto size = get<std::uint64_t>(at + 40);
    out.begin = get<std::uint64_t>(at + 48);
    if (get<std::uint32_t>(at + 16) != 0 || get<std::uint32_t>(at + 20) != 0 ||
        get<std::uint64_t>(at + 24) != out.entries)
      refuse("is a zip archive of several volumes", Errc::Unsupported);
    const bool agree = (small.entries == kAll16 || small.entries == out.entries) &&
                       (small_size == kAll32 || small_size == size) &&
                       (small.begin == kAll32 || small.begin == out.begin);
    if (!agree)
      refuse("the two ends of the zip directory contradict each other (byte " +
             std::to_string(end) + ")");
    return checked(out, size);
  }

  [[nodiscard]] Directory checked(const Directory& directory, std::uint64_t size) const {
    if (directory.begin > directory.end || directory.end - directory.begin != size)
      refuse("the zip directory should lie at bytes " + std::to_string(directory.begin) +
             " on and have " + std::to_string(size) +
             " bytes, which does not reach its end at byte " + std::to_string(directory.end));
    if (directory.entries > size / kCentralBytes)
      refuse("the zip directory claims " + std::to_string(directory.entries) +
             " entries, for which it is too small");
    return directory;
  }

  [[nodiscard]] std::vector<Record> read_records(const Directory& directory) const {
    std::vector<Record> out;
    auto at = directory.begin;
    while (at < directory.end) {
      const auto refuse_record = [&] {
        refuse("the record of the zip directory at byte " + std::to_string(at) + " is malformed");
      };
      if (directory.end - at < kCentralBytes || get<std::uint32_t>(at) != kCentral) refuse_record();
      const std::uint64_t name = get<std::uint16_t>(at + 28);
      const std::uint64_t extra = get<std::uint16_t>(at + 30);
      const std::uint64_t comment = get<std::uint16_t>(at + 32);
      if (directory.end - at - kCentralBytes < name + extra + comment) refuse_record();
      out.push_back(read_record(at, name, extra));
      at += kCentralBytes + name + extra + comment;
    }
    if (out.size() != directory.entries)
      refuse("the zip directory has " + std::to_string(out.size()) + " entries, not the " +
             std::to_string(directory.entries) + " that it claims");
    return out;
  }

  [[nodiscard]] Record read_record(std::uint64_t at, std::uint64_t name_bytes,
                                   std::uint64_t extra_bytes) const {
    Record out;
    out.name.assign(reinterpret_cast<const char*>(bytes_.data()) + at + kCentralBytes, name_bytes);
    out.flags = get<std::uint16_t>(at + 8);
    out.method = get<std::uint16_t>(at + 10);
    out.entry.crc = get<std::uint32_t>(at + 16);
    out.compressed = get<std::uint32_t>(at + 20);
    out.entry.size = get<std::uint32_t>(at + 24);
    out.local = get<std::uint32_t>(at + 42);
    read_extra64(out, at + kCentralBytes + name_bytes, extra_bytes);
    check_name(out.name, at);
    if ((out.flags & 0x2041U) != 0)
      refuse("the zip entry '" + out.name + "' is encrypted", Errc::Unsupported);
    if (out.method != 0 && out.name.find("/code/") != std::string::npos)
      refuse("is a TorchScript archive, which is a program; save the module's state_dict() instead",
             Errc::Unsupported);
    if (out.method != 0)
      refuse("the zip entry '" + out.name + "' is compressed (method " +
                 std::to_string(out.method) + "), which torch.save never does",
             Errc::Unsupported);
    if (out.compressed != out.entry.size)
      refuse("the zip entry '" + out.name + "' is stored with " + std::to_string(out.compressed) +
             " bytes but claims " + std::to_string(out.entry.size));
    return out;
  }

  /// zip64 sizes, in the order of the fields that are all ones.
  void read_extra64(Record& out, std::uint64_t at, std::uint64_t count) const {
    const auto end = at + count;
    while (end - at >= 4) {
      const auto id = get<std::uint16_t>(at);
      const std::uint64_t size = get<std::uint16_t>(at + 2);
      at += 4;
      if (end - at < size)
        refuse("the zip entry '" + out.name + "' has a malformed extra field (byte " +
               std::to_string(at) + ")");
      if (id == 1) {
        auto field = at;
        for (auto* const wide : {&out.entry.size, &out.compressed, &out.local}) {
          if (*wide != kAll32) continue;
          if (at + size - field < 8)
            refuse("the zip entry '" + out.name + "' lacks a 64-bit size (byte " +
                   std::to_string(at) + ")");
          *wide = get<std::uint64_t>(field);
          field += 8;
        }
        return;
      }
      at += size;
    }
  }

  void check_name(const std::string& name, std::uint64_t at) const {
    const bool plain =
        !name.empty() && name.front() != '/' && std::ranges::none_of(name, [](char c) {
          return c == '\\' || static_cast<unsigned char>(c) < 0x20;
        });
    bool climbs = false;
    for (std::size_t begin = 0; begin <= name.size();) {
      const auto slash = std::min(name.find('/', begin), name.size());
      const auto part = std::string_view{name}.substr(begin, slash - begin);
      climbs = climbs || part == ".." || part == "." || (part.empty() && slash != name.size());
      begin = slash + 1;
    }
    if (!plain || climbs)
      refuse("the zip directory has an entry whose name is no plain relative path (byte " +
             std::to_string(at) + ")");
  }

  void read_local(Record& record, std::uint64_t limit) const {
    const auto refuse_local = [&](const std::string& text) {
      refuse("the zip entry '" + record.name + "' " + text + " (byte " +
             std::to_string(record.local) + ")");
    };
    if (record.local > limit || limit - record.local < kLocalBytes)
      refuse_local("should begin where there is no room for it");
    const auto at = record.local;
    if (get<std::uint32_t>(at) != kLocal) refuse_local("has no header where the directory says");
    const std::uint64_t name = get<std::uint16_t>(at + 26);
    const std::uint64_t extra = get<std::uint16_t>(at + 28);
    const auto left = limit - at - kLocalBytes;
    if (left < name + extra || left - name - extra < record.entry.size)
      refuse_local("reaches into the zip directory or beyond the end");
    if (name != record.name.size() ||
        std::memcmp(bytes_.data() + at + kLocalBytes, record.name.data(), name) != 0)
      refuse_local("has another name in its own header");
    if (get<std::uint16_t>(at + 8) != 0 || (get<std::uint16_t>(at + 6) & 0x2041U) != 0)
      refuse_local("has a header that contradicts the directory");
    const bool sizes_follow = (get<std::uint16_t>(at + 6) & 8U) != 0;
    const auto stored = get<std::uint32_t>(at + 18);
    if (!sizes_follow && stored != kAll32 && stored != record.entry.size)
      refuse_local("has a header that contradicts the directory");
    record.entry.begin = at + kLocalBytes + name + extra;
    record.end = record.entry.begin + record.entry.size;
  }

  void check_disjoint(std::vector<Record>& records) const {
    std::ranges::sort(records, {}, &Record::local);
    for (std::size_t i = 1; i < records.size(); ++i) {
      if (records[i].local < records[i - 1].end)
        refuse("the zip entries '" + records[i - 1].name + "' and '" + records[i].name +
               "' overlap (byte " + std::to_string(records[i].local) + ")");
    }
  }

  std::span<const std::byte> bytes_;
  std::string_view what_;
};

using Tables = std::array<std::array<std::uint32_t, 256>, 8>;

constexpr Tables make_tables() {
  Tables out{};
  for (std::uint32_t i = 0; i < 256; ++i) {
    std::uint32_t crc = i;
    for (int bit = 0; bit < 8; ++bit) crc = crc >> 1 ^ (0xEDB88320U & (0U - (crc & 1U)));
    out[0][i] = crc;
  }
  for (std::size_t t = 1; t < out.size(); ++t) {
    for (std::size_t i = 0; i < 256; ++i)
      out[t][i] = out[t - 1][i] >> 8 ^ out[0][out[t - 1][i] & 0xFF];
  }
  return out;
}

constexpr Tables kTables = make_tables();

}  // namespace

std::map<std::string, ZipEntry, std::less<>> read_zip_directory(std::span<const std::byte> archive,
                                                                std::string_view what) {
  return ZipReader{archive, what}.read();
}

bool looks_like_zip(std::span<const std::byte> bytes) noexcept {
  return bytes.size() >= 4 && little_endian<std::uint32_t>(bytes, 0) == kLocal;
}

std::uint32_t crc32(std::span<const std::byte> bytes) noexcept {
  std::uint32_t crc = ~0U;
  std::size_t at = 0;
  for (; bytes.size() - at >= 8; at += 8) {
    std::uint64_t word = 0;
    std::memcpy(&word, bytes.data() + at, 8);
    word ^= crc;
    crc = 0;
    for (std::size_t i = 0; i < 8; ++i) crc ^= kTables[7 - i][word >> (8 * i) & 0xFF];
  }
  for (; at < bytes.size(); ++at)
    crc = crc >> 8 ^ kTables[0][(crc ^ std::to_integer<std::uint32_t>(bytes[at])) & 0xFF];
  return ~crc;
}

}  // namespace troupe::detail
