#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <troupe/errors.hpp>
#include <troupe/safetensors.hpp>
#include <utility>

#include "descriptor.hpp"
#include "mapped_file.hpp"
#include "safetensors_layout.hpp"

namespace troupe {
namespace {

namespace fs = std::filesystem;

[[noreturn]] void fail_storage(const fs::path& file, const std::string& doing) {
  throw Failure{Errc::StorageUnavailable,
                file.string() + ": cannot " + doing + ": " + std::strerror(errno)};
}

void check_items(const fs::path& file, const std::vector<SafetensorsItem>& items) {
  const auto refuse = [&](const SafetensorsItem& item, const std::string& text) {
    throw Failure{Errc::InvalidArgument, file.string() + ": tensor '" + item.name + "' " + text};
  };
  std::vector<std::string_view> names;
  for (const auto& item : items) {
    if (item.name == "__metadata__") refuse(item, "has a reserved name");
    names.push_back(item.name);
    if (detail::tensor_bytes(item.dtype, item.shape) != item.bytes.size()) {
      refuse(item, "has " + std::to_string(item.bytes.size()) +
                       " bytes, which do not fit its dtype and shape");
    }
  }
  std::ranges::sort(names);
  if (const auto twice = std::ranges::adjacent_find(names); twice != names.end()) {
    throw Failure{Errc::InvalidArgument,
                  file.string() + ": tensor '" + std::string(*twice) + "' is there twice"};
  }
}

std::string header_bytes(const fs::path& file, const std::vector<SafetensorsItem>& items,
                         const std::map<std::string, std::string>& metadata) {
  std::vector<SafetensorsEntry> entries;
  std::uint64_t at = 0;
  for (const auto& item : items) {
    entries.push_back({item.name, item.dtype, item.shape, at, at + item.bytes.size()});
    at += item.bytes.size();
  }
  return detail::safetensors_header(entries, metadata, 8, file.string());
}

void write_all(int fd, std::span<const std::byte> bytes, const fs::path& file) {
  while (!bytes.empty()) {
    const auto written = ::write(fd, bytes.data(), std::min<std::size_t>(bytes.size(), 1U << 30));
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) fail_storage(file, "write");
    bytes = bytes.subspan(static_cast<std::size_t>(written));
  }
}

/// Removes the temporary file unless it was renamed away.
struct Temporary {
  fs::path path;
  ~Temporary() {
    if (!path.empty()) ::unlink(path.c_str());
  }
};

void sync_directory(const fs::path& file) {
  const auto directory = file.has_parent_path() ? file.parent_path() : fs::path{"."};
  const detail::Descriptor fd{::open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC)};
  if (fd.value < 0 || ::fsync(fd.value) != 0) fail_storage(directory, "sync");
}

}  // namespace

SafetensorsFile::SafetensorsFile(const fs::path& file) {
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

void write_safetensors_file(const fs::path& file, std::vector<SafetensorsItem> items,
                            const std::map<std::string, std::string>& metadata) {
  std::ranges::sort(items, [](const auto& a, const auto& b) {
    return detail::lies_before(a.dtype, a.name, b.dtype, b.name);
  });
  check_items(file, items);
  const auto header = header_bytes(file, items, metadata);
  static std::atomic<std::uint64_t> count{0};
  Temporary temporary{fs::path{file} +=
                      ".tmp." + std::to_string(::getpid()) + "." + std::to_string(++count)};
  {
    const detail::Descriptor fd{
        ::open(temporary.path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666)};
    if (fd.value < 0) fail_storage(std::exchange(temporary.path, {}), "create");
    write_all(fd.value, std::as_bytes(std::span{header}), file);
    for (const auto& item : items) write_all(fd.value, item.bytes, file);
    if (::fsync(fd.value) != 0) fail_storage(file, "sync");
  }
  if (::rename(temporary.path.c_str(), file.c_str()) != 0)
    fail_storage(file, "rename the finished file to");
  temporary.path.clear();
  sync_directory(file);
}

}  // namespace troupe
