// The layout: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, versions 2 and 3, little-endian.
#include <troupe/errors.hpp>
#include <troupe/gguf.hpp>

#include <algorithm>
#include <bit>
#include <cstring>
#include <limits>
#include <optional>
#include <set>

namespace troupe {

namespace {

constexpr std::uint64_t max_name = 65'535, max_dims = 4, max_alignment = 1 << 20;
constexpr std::uint64_t max_elements = std::uint64_t{1} << 56;

enum class Kind : std::uint32_t { U8, I8, U16, I16, U32, I32, F32, Bool, String, Array, U64, I64, F64 };

class Parser {
 public:
  Parser(std::span<const std::byte> file, std::string_view what) : file_(file), what_(what) {}

  GgufHeader parse() {
    if (file_.size() < 4 || std::memcmp(file_.data(), "GGUF", 4) != 0) refuse("does not begin with GGUF");
    at_ = 4;
    GgufHeader header;
    header.version = number<std::uint32_t>("the version");
    if (header.version == 0x02000000 || header.version == 0x03000000) unsupported("is big-endian; only little-endian files are read");
    if (header.version != 2 && header.version != 3) unsupported("has version " + std::to_string(header.version) + "; 2 and 3 are read");
    const auto num_tensors = count(24, "the number of tensors");
    const auto num_values = count(13, "the number of metadata values");
    for (std::uint64_t i = 0; i < num_values; ++i) value(header);
    for (std::uint64_t i = 0; i < num_tensors; ++i) tensor(header);
    place(header);
    return header;
  }

 private:
  [[noreturn]] void refuse(const std::string& text) const { throw Failure{Errc::FileCorrupt, std::string(what_) + ": " + text}; }
  [[noreturn]] void unsupported(const std::string& text) const { throw Failure{Errc::Unsupported, std::string(what_) + ": " + text}; }

  std::uint64_t left() const noexcept { return file_.size() - at_; }

  template <class T>
  T number(const std::string& of) {
    if (left() < sizeof(T)) refuse("ends at byte " + std::to_string(file_.size()) + " inside " + of);
    T out;
    std::memcpy(&out, file_.data() + at_, sizeof(T));
    at_ += sizeof(T);
    return out;
  }

  /// A count of things of which each has at least `bytes` bytes, so that a wrong one allocates nothing.
  std::uint64_t count(std::uint64_t bytes, const std::string& of) {
    const auto out = number<std::uint64_t>(of);
    if (out > left() / bytes) refuse(of + " is " + std::to_string(out) + ", more than the file has room for");
    return out;
  }

  std::string string(const std::string& of, std::uint64_t limit = std::numeric_limits<std::uint64_t>::max()) {
    const auto length = count(1, "the length of " + of);
    if (length > limit) refuse("the length of " + of + " is " + std::to_string(length));
    std::string out(reinterpret_cast<const char*>(file_.data() + at_), length);
    at_ += length;
    return out;
  }

  std::int64_t integer(Kind kind, const std::string& of) {
    switch (kind) {
      case Kind::U8: return number<std::uint8_t>(of);
      case Kind::I8: return number<std::int8_t>(of);
      case Kind::U16: return number<std::uint16_t>(of);
      case Kind::I16: return number<std::int16_t>(of);
      case Kind::U32: return number<std::uint32_t>(of);
      case Kind::I32: return number<std::int32_t>(of);
      case Kind::I64: return number<std::int64_t>(of);
      case Kind::Bool: {
        const auto byte = number<std::uint8_t>(of);
        if (byte > 1) refuse(of + " is a boolean of value " + std::to_string(byte));
        return byte;
      }
      default: break;
    }
    const auto out = number<std::uint64_t>(of);
    if (out > static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max())) refuse(of + " is beyond 2^63-1");
    return static_cast<std::int64_t>(out);
  }

  double real(Kind kind, const std::string& of) { return kind == Kind::F32 ? number<float>(of) : number<double>(of); }

  static std::uint64_t least_bytes(Kind kind) {
    switch (kind) {
      case Kind::U8: case Kind::I8: case Kind::Bool: return 1;
      case Kind::U16: case Kind::I16: return 2;
      case Kind::U32: case Kind::I32: case Kind::F32: return 4;
      default: return 8;
    }
  }

  Kind kind(const std::string& of) {
    const auto word = number<std::uint32_t>("the type of " + of);
    if (word > static_cast<std::uint32_t>(Kind::F64)) refuse(of + " has the unknown value type " + std::to_string(word));
    return static_cast<Kind>(word);
  }

  GgufValue array(const std::string& of) {
    const auto element = kind(of);
    const auto length = count(least_bytes(element), "the length of " + of);
    if (element == Kind::Array) unsupported(of + " is an array of arrays, which is not read");
    if (element == Kind::String) {
      std::vector<std::string> out;
      out.reserve(length);
      for (std::uint64_t i = 0; i < length; ++i) out.push_back(string(of));
      return out;
    }
    if (element == Kind::F32 || element == Kind::F64) {
      std::vector<double> out(length);
      for (auto& one : out) one = real(element, of);
      return out;
    }
    std::vector<std::int64_t> out(length);
    for (auto& one : out) one = integer(element, of);
    return out;
  }

  GgufValue read(Kind kind, const std::string& of) {
    switch (kind) {
      case Kind::String: return string(of);
      case Kind::Array: return array(of);
      case Kind::F32: case Kind::F64: return real(kind, of);
      case Kind::Bool: return integer(kind, of) == 1;
      default: return integer(kind, of);
    }
  }

  void value(GgufHeader& header) {
    const auto key = string("a metadata key", max_name);
    const auto of = "metadata '" + key + "'";
    auto read_value = read(kind(of), of);
    if (!header.values.emplace(key, std::move(read_value)).second) refuse(of + " is there twice");
  }

  void tensor(GgufHeader& header) {
    GgufTensor out;
    out.name = string("a tensor's name", max_name);
    const auto of = "tensor '" + out.name + "'";
    if (!names_.insert(out.name).second) refuse(of + " is there twice");
    const auto dims = number<std::uint32_t>(of);
    if (dims > max_dims) refuse(of + " has " + std::to_string(dims) + " dimensions, at most 4 are possible");
    std::uint64_t elements = 1;
    for (std::uint32_t i = 0; i < dims; ++i) {
      const auto size = number<std::uint64_t>(of);
      if (size == 0 || __builtin_mul_overflow(elements, size, &elements) || elements > max_elements) refuse(of + " has a size of " + std::to_string(size));
      out.shape.insert(out.shape.begin(), size);
    }
    out.type = static_cast<GgufType>(number<std::uint32_t>(of));
    out.begin = number<std::uint64_t>(of);  // from the data's begin on, until place()
    GgufBlock block;
    try {
      block = block_of(out.type);
    } catch (const Failure& failure) {
      unsupported(of + " " + failure.what());
    }
    const auto row = out.shape.empty() ? 1 : out.shape.back();
    if (row % block.elements != 0) refuse(of + " has rows of " + std::to_string(row) + " elements, which are no whole blocks of " + troupe::name(out.type));
    out.bytes = elements / block.elements * block.bytes;
    header.tensors.push_back(std::move(out));
  }

  /// Turns offsets into bytes of the file and checks them.
  void place(GgufHeader& header) const {
    std::uint64_t alignment = 32;
    if (const auto found = header.values.find("general.alignment"); found != header.values.end()) {
      const auto* wanted = std::get_if<std::int64_t>(&found->second);
      if (wanted == nullptr || *wanted < 1 || *wanted > static_cast<std::int64_t>(max_alignment) || !std::has_single_bit(static_cast<std::uint64_t>(*wanted)))
        refuse("metadata 'general.alignment' is no power of two up to 2^20");
      alignment = static_cast<std::uint64_t>(*wanted);
    }
    const auto data = (at_ + alignment - 1) / alignment * alignment;
    for (auto& tensor : header.tensors) {
      const auto of = "tensor '" + tensor.name + "'";
      if (tensor.begin % alignment != 0) refuse(of + " lies at offset " + std::to_string(tensor.begin) + ", no multiple of " + std::to_string(alignment));
      if (data > file_.size() || tensor.begin > file_.size() - data || tensor.bytes > file_.size() - data - tensor.begin)
        refuse(of + " has its " + std::to_string(tensor.bytes) + " bytes at offset " + std::to_string(tensor.begin) + " of the data, past the end of the file");
      tensor.begin += data;
    }
    std::ranges::stable_sort(header.tensors, {}, &GgufTensor::begin);
    for (std::size_t i = 1; i < header.tensors.size(); ++i) {
      const auto& before = header.tensors[i - 1];
      if (before.begin + before.bytes > header.tensors[i].begin) refuse("tensors '" + before.name + "' and '" + header.tensors[i].name + "' overlap");
    }
  }

  std::span<const std::byte> file_;
  std::string_view what_;
  std::uint64_t at_ = 0;
  std::set<std::string> names_;
};

}  // namespace

std::uint64_t GgufTensor::elements() const noexcept {
  std::uint64_t out = 1;
  for (const auto size : shape) out *= size;
  return out;
}

GgufHeader parse_gguf(std::span<const std::byte> file, std::string_view what) {
  static_assert(std::endian::native == std::endian::little);
  return Parser{file, what}.parse();
}

}  // namespace troupe
