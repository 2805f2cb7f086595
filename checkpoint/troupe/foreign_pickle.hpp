#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

// What torch.save writes, read as data. Nothing in a file is ever imported, called or constructed:
// a fixed set of names is understood (docs/checkpoints_foreign.md), every other one is refused.

namespace troupe {

/// Element types that torch.save writes and LibTorch 2.11 has.
enum class TorchDtype : std::uint8_t {
  uint8,
  int8,
  int16,
  int32,
  int64,
  float16,
  float32,
  float64,
  complex32,
  complex64,
  complex128,
  boolean,
  bfloat16,
  uint16,
  uint32,
  uint64,
  float8_e5m2,
  float8_e4m3fn,
  float8_e5m2fnuz,
  float8_e4m3fnuz,
  float8_e8m0fnu,
  float4_e2m1fn_x2
};

/// torch's name without the module: "float32", "bool".
[[nodiscard]] std::string_view name(TorchDtype dtype) noexcept;
[[nodiscard]] std::optional<TorchDtype> torch_dtype(std::string_view name) noexcept;
[[nodiscard]] std::uint64_t bytes_of(TorchDtype dtype) noexcept;

/// A tensor of a foreign file: a strided view of one storage. Checked: every element lies inside
/// `storage`, and there are no more elements than the storage has, so copying it needs no more
/// memory than the file has bytes.
struct ForeignTensor {
  TorchDtype dtype = TorchDtype::float32;
  std::vector<std::int64_t> shape;
  std::vector<std::int64_t> strides;  ///< in elements, not negative; as many as `shape`
  std::uint64_t offset = 0;           ///< of the first element in `storage`, in bytes
  std::span<std::byte>
      storage;  ///< mapped private and copy on write, or owned memory; kept alive by `keep`
  std::shared_ptr<void> keep;

  [[nodiscard]] std::uint64_t elements() const noexcept;
  [[nodiscard]] bool contiguous() const noexcept;
};

/// The elements in row-major order, copied.
[[nodiscard]] std::vector<std::byte> contiguous_bytes(const ForeignTensor& tensor);
/// `parts` (one dtype, contiguous runs of bytes) end to end, seen as `shape`; a single part is not
/// copied. Throws Failure{FileCorrupt} beginning with `what` when the bytes are not those that
/// `shape` needs.
[[nodiscard]] ForeignTensor joined(const std::vector<ForeignTensor>& parts,
                                   std::vector<std::int64_t> shape, std::string_view what);

enum class PickleKind : std::uint8_t {
  None,
  Bool,
  Int,     ///< fits in 64 bits with sign
  BigInt,  ///< any other; text() holds its little-endian two's complement
  Float,
  String,
  Bytes,
  Tuple,  ///< torch.Size too
  List,
  Dict,  ///< OrderedDict, defaultdict and Counter too
  Set,
  Tensor,  ///< numpy arrays and scalars of plain numbers too
  Dtype,
  Device,
  Name,   ///< a class or function that the file only mentions
  Object  ///< an instance of a class that PickleOptions::data_classes allows: its arguments and
          ///< state, as data
};

[[nodiscard]] std::string_view name(PickleKind kind) noexcept;

namespace detail {
struct PickleStore;
}

/// One value of a pickle: a small handle into its PickleFile, which must outlive it. The whole is a
/// finite tree: cycles, more than PickleOptions::max_depth levels and shared parts that would
/// unfold to more than `max_unfolded` values, or to very many out of a few bytes, are refused when the file is read, so recursion over
/// it is safe.
///
/// Errors: a member for another kind throws Failure{FileCorrupt} naming file and both kinds.
class PickleValue {
 public:
  PickleValue() = default;
  PickleValue(const detail::PickleStore* store, std::uint32_t node) : store_(store), node_(node) {}

  [[nodiscard]] PickleKind kind() const;
  [[nodiscard]] bool is(PickleKind wanted) const { return kind() == wanted; }
  [[nodiscard]] std::int64_t integer() const;  ///< Int or Bool
  [[nodiscard]] double number() const;         ///< Float, Int or Bool
  [[nodiscard]] std::string_view text()
      const;  ///< String, Bytes, BigInt, Device, Name ("module.name")
  [[nodiscard]] TorchDtype dtype() const;
  [[nodiscard]] const ForeignTensor& tensor() const;

  /// Elements of a Tuple, List or Set; members of a Dict.
  [[nodiscard]] std::size_t size() const;
  [[nodiscard]] PickleValue operator[](std::size_t i) const;  ///< of a Tuple, List or Set
  [[nodiscard]] PickleValue key(std::size_t i) const;         ///< of a Dict
  [[nodiscard]] PickleValue value(std::size_t i) const;       ///< of a Dict
  /// The member of a Dict, or of an Object whose state is one. Of equal keys the last one counts,
  /// as in Python.
  [[nodiscard]] std::optional<PickleValue> find(std::string_view member) const;
  /// The same; throws Failure{FileCorrupt} naming the member when it is missing.
  [[nodiscard]] PickleValue at(std::string_view member) const;

  [[nodiscard]] std::string_view class_name() const;       ///< of an Object: "module.name"
  [[nodiscard]] PickleValue arguments() const;             ///< of an Object: a Tuple
  [[nodiscard]] std::optional<PickleValue> state() const;  ///< of an Object

  /// Throws Failure{FileCorrupt, "<file>: <text>"}.
  [[noreturn]] void refuse(const std::string& text) const;

 private:
  const detail::PickleStore* store_ = nullptr;
  std::uint32_t node_ = 0;
};

struct PickleOptions {
  /// Classes whose instances may be kept as PickleKind::Object: full names ("argparse.Namespace"),
  /// or everything in a package by a final dot ("deepspeed."). They are never looked up, let alone
  /// called.
  std::vector<std::string> data_classes;
  bool verify_crc = true;  ///< of every zip entry that is used, where the writer stored one
  std::uint32_t max_objects = 4'000'000;
  std::uint32_t max_stack = 1'000'000;
  std::uint32_t max_depth = 100;
  std::uint64_t max_unfolded = 8'000'000;
};

/// A pickle that was read. Copies share it.
struct PickleFile {
  std::shared_ptr<const detail::PickleStore> store;
  PickleValue root;
};

/// Reads a file of torch.save (PyTorch 1.6 or later: a zip of stored entries). Tensors share its
/// private mapping. Threads: any. Errors: Failure{FileNotFound, StorageUnavailable}; {FileCorrupt}
/// for bytes that are not what the format demands; {Unsupported} for a name, dtype or feature that
/// is not read. File and byte are named.
[[nodiscard]] PickleFile read_torch_file(const std::filesystem::path& file,
                                         const PickleOptions& options = {});

/// The same from bytes in memory; `keep` keeps them alive, `what` names them in errors.
[[nodiscard]] PickleFile read_torch_bytes(std::span<std::byte> bytes, std::shared_ptr<void> keep,
                                          const std::string& what,
                                          const PickleOptions& options = {});

/// A bare pickle, without a zip and thus without storages. `base` is added to the byte offsets in
/// errors.
[[nodiscard]] PickleFile read_pickle_bytes(std::span<const std::byte> bytes,
                                           std::shared_ptr<void> keep, const std::string& what,
                                           const PickleOptions& options = {});

}  // namespace troupe
