#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace troupe {

/// Element types that safetensors 0.8.0 knows, in its order (which is also the order of tensors in
/// a file, last first).
enum class SafetensorsDtype : std::uint8_t {
  BOOL,
  F4,
  F6_E2M3,
  F6_E3M2,
  U8,
  I8,
  F8_E5M2,
  F8_E4M3,
  F8_E8M0,
  F8_E4M3FNUZ,
  F8_E5M2FNUZ,
  I16,
  U16,
  F16,
  BF16,
  I32,
  U32,
  F32,
  C64,
  F64,
  I64,
  U64
};

[[nodiscard]] std::string_view name(SafetensorsDtype dtype) noexcept;
[[nodiscard]] std::optional<SafetensorsDtype> safetensors_dtype(std::string_view name) noexcept;
/// Bits of one element: F4 and F6 do not fill bytes.
[[nodiscard]] std::uint64_t bits_of(SafetensorsDtype dtype) noexcept;

/// One tensor's entry in the header.
struct SafetensorsEntry {
  std::string name;
  SafetensorsDtype dtype = SafetensorsDtype::F32;
  std::vector<std::uint64_t> shape;
  std::uint64_t begin = 0;  ///< bytes from the end of the header on
  std::uint64_t end = 0;
};

struct SafetensorsHeader {
  std::vector<SafetensorsEntry>
      tensors;  ///< by offset; together they cover the data without hole or overlap
  std::map<std::string, std::string> metadata;
  std::uint64_t data_begin = 0;  ///< of the data in the file
};

/// Checks the whole of `file` as safetensors 0.8.0 does: accepts what it accepts, rejects what it
/// rejects. Reads only the header's bytes. Throws Failure{FileCorrupt} that begins with `what` and
/// names the tensor and field.
[[nodiscard]] SafetensorsHeader parse_safetensors(std::span<const std::byte> file,
                                                  std::string_view what);

/// A mapped safetensors file: private and copy on write, so its bytes may be changed in memory but
/// never on disk. The file must not be shortened by anyone while it is mapped.
///
/// Threads: const members from any thread. Errors: Failure{FileNotFound, FileCorrupt,
/// StorageUnavailable}, file named.
class SafetensorsFile {
 public:
  explicit SafetensorsFile(const std::filesystem::path& file);

  [[nodiscard]] const std::vector<SafetensorsEntry>& tensors() const noexcept {
    return header_.tensors;
  }
  [[nodiscard]] const std::map<std::string, std::string>& metadata() const noexcept {
    return header_.metadata;
  }
  /// Nothing when there is no tensor of that name.
  [[nodiscard]] const SafetensorsEntry* find(std::string_view name) const noexcept;
  [[nodiscard]] std::span<std::byte> bytes(const SafetensorsEntry& entry) const noexcept;
  /// Keeps the bytes valid after this object is gone.
  [[nodiscard]] std::shared_ptr<void> mapping() const noexcept { return mapping_; }

 private:
  std::shared_ptr<void> mapping_;
  std::byte* data_ = nullptr;
  SafetensorsHeader header_;
};

/// What to write: borrowed bytes, which must be as many as dtype and shape say.
struct SafetensorsItem {
  std::string name;
  SafetensorsDtype dtype = SafetensorsDtype::F32;
  std::vector<std::uint64_t> shape;
  std::span<const std::byte> bytes;
};

/// Writes what safetensors' own writer would, byte for byte: dtypes in descending order (so data
/// are aligned), names ascending within, header padded to 8 bytes. The bytes go to a temporary file
/// beside `file`, are synced, and are then renamed over it: `file` is the old or the new one, never
/// torn. Throws Failure{InvalidArgument} for a name that is there twice or a wrong number of bytes,
/// {StorageUnavailable} when the disk refuses.
void write_safetensors_file(const std::filesystem::path& file, std::vector<SafetensorsItem> items,
                            const std::map<std::string, std::string>& metadata = {});

}  // namespace troupe
