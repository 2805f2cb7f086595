#include "batch_bytes.hpp"

#include <ATen/core/Tensor.h>
#include <ATen/ops/from_blob.h>

#include <cstring>
#include <limits>
#include <troupe/errors.hpp>

namespace troupe {
namespace {

constexpr std::uint64_t kMagic = 0x3168637462657074;  // "tpebtch1"
constexpr std::size_t kAlign = 64;
constexpr std::uint64_t kMostDims = 64;

std::size_t aligned(std::size_t offset) { return (offset + kAlign - 1) / kAlign * kAlign; }

class Writer {
 public:
  template <class Integer>
  void number(Integer value) {
    const auto wide = static_cast<std::uint64_t>(value);
    bytes.append(reinterpret_cast<const char*>(&wide), sizeof wide);
  }
  void text(const std::string& value) {
    number(value.size());
    bytes.append(value);
  }
  void numbers(const std::int64_t* first, std::size_t count) {
    number(count);
    bytes.append(reinterpret_cast<const char*>(first), count * sizeof *first);
  }
  std::string bytes;
};

class Reader {
 public:
  explicit Reader(std::span<const std::byte> bytes) : bytes_(bytes) {}
  [[noreturn]] static void fail(const char* why) { throw Failure{Errc::ProtocolError, std::string{"DataLoader: the bytes of a batch are damaged: "} + why}; }
  std::uint64_t number() {
    std::uint64_t value = 0;
    std::memcpy(&value, take(sizeof value), sizeof value);
    return value;
  }
  std::int64_t integer() { return static_cast<std::int64_t>(number()); }
  std::string text() {
    const auto length = number();
    return {reinterpret_cast<const char*>(take(length)), static_cast<std::size_t>(length)};
  }
  std::vector<std::int64_t> numbers() {
    const auto count = number();
    if (count > bytes_.size() / sizeof(std::int64_t)) fail("a list is longer than all of them");
    std::vector<std::int64_t> values(static_cast<std::size_t>(count));
    const auto* from = take(count * sizeof(std::int64_t));
    if (count > 0) std::memcpy(values.data(), from, static_cast<std::size_t>(count) * sizeof(std::int64_t));
    return values;
  }

 private:
  const std::byte* take(std::uint64_t count) {
    if (count > bytes_.size()) fail("they end too early");
    const auto* at = bytes_.data();
    bytes_ = bytes_.subspan(static_cast<std::size_t>(count));
    return at;
  }
  std::span<const std::byte> bytes_;
};

/// Bytes of so many elements; fails where the shape cannot be.
std::uint64_t bytes_of(const std::vector<std::int64_t>& sizes, std::uint64_t element) {
  std::uint64_t bytes = element;
  for (const auto size : sizes) {
    if (size < 0) Reader::fail("a dimension is negative");
    if (__builtin_mul_overflow(bytes, static_cast<std::uint64_t>(size), &bytes)) Reader::fail("a tensor is larger than memory");
  }
  return bytes;
}

}  // namespace

PackedBatch::PackedBatch(const LoadedBatch& loaded) {
  Writer out;
  const auto& meta = loaded.meta;
  out.number(kMagic);
  out.number(meta.number);
  out.number(meta.remainder);
  out.number(meta.samples_after);
  out.numbers(meta.indices.data(), meta.indices.size());
  out.text(meta.stream);
  out.number(loaded.batch.size());
  std::size_t end = 0;  // of what lies behind the header
  for (const auto& [name, tensor] : loaded.batch) {
    if (!tensor.defined() || tensor.layout() != at::kStrided || !tensor.device().is_cpu() || tensor.is_quantized())
      throw Failure{Errc::Unsupported, "DataLoader: '" + name + "' is no dense tensor in host memory; only such can go to another process"};
    parts_.push_back({tensor.detach().contiguous().resolve_conj().resolve_neg(), aligned(end)});
    end = parts_.back().offset + parts_.back().tensor.nbytes();
    out.text(name);
    out.number(static_cast<std::int8_t>(tensor.scalar_type()));
    out.numbers(tensor.sizes().data(), tensor.sizes().size());
    out.number(parts_.back().offset);
  }
  header_ = std::move(out.bytes);
  const auto begin = aligned(header_.size());
  for (auto& part : parts_) part.offset += begin;
  size_ = begin + end;
}

void PackedBatch::write(std::span<std::byte> to) const {
  std::memcpy(to.data(), header_.data(), header_.size());
  for (const auto& [tensor, offset] : parts_) {
    if (tensor.nbytes() > 0) std::memcpy(to.data() + offset, tensor.const_data_ptr(), tensor.nbytes());
  }
}

LoadedBatch unpack(const std::shared_ptr<void>& owner, std::span<std::byte> bytes) {
  struct Entry {
    std::string name;
    at::ScalarType type;
    std::vector<std::int64_t> sizes;
    std::uint64_t offset, length;
  };
  Reader in{bytes};
  if (in.number() != kMagic) Reader::fail("they do not begin as one");
  LoadedBatch loaded;
  auto& meta = loaded.meta;
  meta.number = in.integer();
  meta.remainder = in.integer();
  meta.samples_after = in.integer();
  meta.indices = in.numbers();
  meta.stream = in.text();
  std::vector<Entry> entries;
  std::uint64_t header = 7 * sizeof(std::uint64_t) + meta.indices.size() * sizeof(std::int64_t) + meta.stream.size();
  for (auto left = in.number(); left > 0; --left) {
    Entry entry;
    entry.name = in.text();
    const auto type = in.number();
    if (type >= static_cast<std::uint64_t>(at::ScalarType::NumOptions) || type == static_cast<std::uint64_t>(at::ScalarType::Undefined))
      Reader::fail("a type is unknown");
    entry.type = static_cast<at::ScalarType>(type);
    entry.sizes = in.numbers();
    if (entry.sizes.size() > kMostDims) Reader::fail("a tensor has too many dimensions");
    entry.length = bytes_of(entry.sizes, c10::elementSize(entry.type));
    entry.offset = in.number();
    header += 4 * sizeof(std::uint64_t) + entry.name.size() + entry.sizes.size() * sizeof(std::int64_t);
    entries.push_back(std::move(entry));
  }
  const auto begin = aligned(header);
  for (auto& entry : entries) {
    if (entry.length > 0 && (begin > bytes.size() || entry.offset > bytes.size() - begin || entry.length > bytes.size() - begin - entry.offset))
      Reader::fail("a tensor lies behind their end");
    auto* data = entry.length > 0 ? bytes.data() + begin + entry.offset : bytes.data();
    loaded.batch.set(std::move(entry.name), at::from_blob(data, entry.sizes, [owner](void*) {}, at::TensorOptions().dtype(entry.type)));
  }
  return loaded;
}

}  // namespace troupe
