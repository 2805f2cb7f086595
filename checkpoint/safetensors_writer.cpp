#include <troupe/errors.hpp>
#include <troupe/safetensors_stream.hpp>

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <utility>

#include "descriptor.hpp"
#include "safetensors_layout.hpp"

namespace troupe {
namespace {

namespace fs = std::filesystem;

[[noreturn]] void fail_storage(const fs::path& file, const std::string& doing) {
  throw Failure{Errc::StorageUnavailable, file.string() + ": cannot " + doing + ": " + std::strerror(errno)};
}

[[noreturn]] void refuse(const fs::path& file, const std::string& tensor, const std::string& text) {
  throw Failure{Errc::InvalidArgument, file.string() + ": tensor '" + tensor + "' " + text};
}

/// Puts `tensors` in the file's order and gives each its place.
template <class Tensor>
std::vector<SafetensorsEntry> arrange(const fs::path& file, std::vector<Tensor>& tensors) {
  std::ranges::sort(tensors, [](const auto& a, const auto& b) { return detail::lies_before(a.dtype, a.name, b.dtype, b.name); });
  std::vector<std::string_view> names;
  std::vector<SafetensorsEntry> entries;
  std::uint64_t at = 0;
  for (const auto& tensor : tensors) {
    if (tensor.name == "__metadata__") refuse(file, tensor.name, "has a reserved name");
    names.push_back(tensor.name);
    const auto bytes = detail::tensor_bytes(tensor.dtype, tensor.shape);
    if (!bytes || __builtin_add_overflow(at, *bytes, &at)) refuse(file, tensor.name, "has a shape that is no number of bytes");
    entries.push_back({tensor.name, tensor.dtype, tensor.shape, at - *bytes, at});
  }
  std::ranges::sort(names);
  if (const auto twice = std::ranges::adjacent_find(names); twice != names.end()) refuse(file, std::string(*twice), "is there twice");
  return entries;
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

/// `bytes_of(i)` is asked for in order; what it returned last may be used again.
void write_file(const fs::path& file, const std::vector<SafetensorsEntry>& entries, const std::map<std::string, std::string>& metadata,
                const std::function<std::span<const std::byte>(std::size_t)>& bytes_of) {
  const auto header = detail::safetensors_header(entries, metadata, 8, file.string());
  static std::atomic<std::uint64_t> count{0};
  Temporary temporary{fs::path{file} += ".tmp." + std::to_string(::getpid()) + "." + std::to_string(++count)};
  {
    const detail::Descriptor fd{::open(temporary.path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666)};
    if (fd.value < 0) fail_storage(std::exchange(temporary.path, {}), "create");
    write_all(fd.value, std::as_bytes(std::span{header}), file);
    for (std::size_t i = 0; i < entries.size(); ++i) write_all(fd.value, bytes_of(i), file);
    if (::fsync(fd.value) != 0) fail_storage(file, "sync");
  }
  if (::rename(temporary.path.c_str(), file.c_str()) != 0) fail_storage(file, "rename the finished file to");
  temporary.path.clear();
  sync_directory(file);
}

}  // namespace

void write_safetensors_file(const fs::path& file, std::vector<SafetensorsItem> items, const std::map<std::string, std::string>& metadata) {
  const auto entries = arrange(file, items);
  for (std::size_t i = 0; i < items.size(); ++i) {
    if (entries[i].end - entries[i].begin != items[i].bytes.size())
      refuse(file, items[i].name, "has " + std::to_string(items[i].bytes.size()) + " bytes, which do not fit its dtype and shape");
  }
  write_file(file, entries, metadata, [&](std::size_t i) { return items[i].bytes; });
}

void write_safetensors_stream(const fs::path& file, std::vector<SafetensorsSpec> tensors, const SafetensorsFill& fill,
                              const std::map<std::string, std::string>& metadata) {
  const auto entries = arrange(file, tensors);
  std::vector<std::byte> bytes;
  write_file(file, entries, metadata, [&](std::size_t i) {
    bytes.resize(entries[i].end - entries[i].begin);
    fill(tensors[i], bytes);
    return std::span<const std::byte>{bytes};
  });
}

}  // namespace troupe
