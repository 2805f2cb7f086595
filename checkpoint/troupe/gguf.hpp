#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

namespace troupe {

/// ggml's number of an element type. Only the named ones are read; a file may hold any.
enum class GgufType : std::uint32_t { F32 = 0, F16 = 1, Q4_0 = 2, Q4_1 = 3, Q5_0 = 6, Q5_1 = 7, Q8_0 = 8, BF16 = 30 };

/// "Q4_1"; also of types that are known and not read ("Q4_K"); "type 77" for others.
[[nodiscard]] std::string name(GgufType type);

/// Elements that lie in one block, and the block's bytes. Throws Failure{Unsupported} naming the type when it is not read.
struct GgufBlock {
  std::uint64_t elements = 1;
  std::uint64_t bytes = 0;
};
[[nodiscard]] GgufBlock block_of(GgufType type);

/// The numbers that `bytes` stand for, the same bits as gguf's own Python package computes. `out` has a whole number of
/// blocks, `bytes` exactly those.
void dequantize(GgufType type, std::span<const std::byte> bytes, std::span<float> out);

/// A metadata value. Integers and booleans of arrays are int64, floats double (a float32 keeps its value).
using GgufValue = std::variant<bool, std::int64_t, double, std::string, std::vector<std::int64_t>, std::vector<double>, std::vector<std::string>>;

/// One tensor. `shape` is as in PyTorch, slowest dimension first (the file has it the other way round).
struct GgufTensor {
  std::string name;
  GgufType type = GgufType::F32;
  std::vector<std::uint64_t> shape;
  std::uint64_t begin = 0;  ///< byte of the file
  std::uint64_t bytes = 0;
  [[nodiscard]] std::uint64_t elements() const noexcept;
};

struct GgufHeader {
  std::uint32_t version = 0;  ///< 2 or 3
  std::map<std::string, GgufValue> values;
  std::vector<GgufTensor> tensors;  ///< as they lie in the file
};

/// Reads header and tensor list of a whole `file`, and checks that every tensor lies inside it, aligned and apart from the
/// others. Throws Failure{FileCorrupt} that begins with `what` and names the key or tensor and the byte, {Unsupported} for
/// another version, byte order or an element type that is not read.
[[nodiscard]] GgufHeader parse_gguf(std::span<const std::byte> file, std::string_view what);

/// A mapped GGUF file. Threads: any. Errors: as parse_gguf, and Failure{FileNotFound, StorageUnavailable}.
class GgufFile {
 public:
  explicit GgufFile(const std::filesystem::path& file);
  [[nodiscard]] const std::filesystem::path& path() const noexcept { return path_; }
  [[nodiscard]] const GgufHeader& header() const noexcept { return header_; }
  [[nodiscard]] std::span<const std::byte> bytes(const GgufTensor& tensor) const noexcept { return bytes_.subspan(tensor.begin, tensor.bytes); }

  // A metadata value by key; Failure{FileCorrupt} naming file and key when it is missing or of another kind.
  [[nodiscard]] bool has(const std::string& key) const { return header_.values.contains(key); }
  [[nodiscard]] std::int64_t integer(const std::string& key) const { return get<std::int64_t>(key, "an integer"); }
  [[nodiscard]] double number(const std::string& key) const { return get<double>(key, "a number"); }
  [[nodiscard]] bool flag(const std::string& key) const { return get<bool>(key, "a boolean"); }
  [[nodiscard]] const std::string& text(const std::string& key) const { return get<std::string>(key, "a string"); }
  [[nodiscard]] const std::vector<std::string>& texts(const std::string& key) const { return get<std::vector<std::string>>(key, "an array of strings"); }
  [[nodiscard]] const std::vector<std::int64_t>& integers(const std::string& key) const { return get<std::vector<std::int64_t>>(key, "an array of integers"); }
  [[nodiscard]] const std::vector<double>& numbers(const std::string& key) const { return get<std::vector<double>>(key, "an array of numbers"); }

 private:
  template <class T>
  const T& get(const std::string& key, const char* kind) const {
    const auto found = header_.values.find(key);
    if (found == header_.values.end()) refuse(key, "is missing");
    const auto* value = std::get_if<T>(&found->second);
    if (value == nullptr) refuse(key, std::string("is not ") + kind);
    return *value;
  }
  [[noreturn]] void refuse(const std::string& key, const std::string& text) const;

  std::filesystem::path path_;
  std::shared_ptr<void> mapping_;
  std::span<const std::byte> bytes_;
  GgufHeader header_;
};

}  // namespace troupe
