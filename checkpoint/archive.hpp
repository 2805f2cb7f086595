#pragma once

#include <troupe/errors.hpp>

#include <cereal/cereal.hpp>

#include <bit>
#include <concepts>
#include <cstdint>
#include <cstring>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

// Troupe's own files as bytes, through cereal: numbers as they lie in memory (little-endian, so doubles keep every bit), eight
// bytes of length before what is counted. Framed by a mark, a version and a digest: `frame` and `unframe`.

namespace troupe::detail {

static_assert(std::endian::native == std::endian::little, "checkpoints are little-endian; swap here for another machine");

class Output : public cereal::OutputArchive<Output, cereal::AllowEmptyClassElision> {
 public:
  explicit Output(std::string& bytes) : OutputArchive(this), bytes_(bytes) {}
  void write(const void* data, std::size_t size) { bytes_.append(static_cast<const char*>(data), size); }

 private:
  std::string& bytes_;
};

/// Reads what is there and never more: a count is compared with the bytes that are left before anything is allocated.
class Input : public cereal::InputArchive<Input, cereal::AllowEmptyClassElision> {
 public:
  Input(std::string_view bytes, std::string_view what) : InputArchive(this), rest_(bytes), what_(what) {}
  void read(void* data, std::size_t size) {
    if (size > rest_.size()) fail("ends too early");
    std::memcpy(data, rest_.data(), size);
    rest_.remove_prefix(size);
  }
  /// How many elements of at least one byte follow.
  std::size_t count() {
    std::uint64_t count = 0;
    read(&count, sizeof count);
    if (count > rest_.size()) fail("counts " + std::to_string(count) + " where " + std::to_string(rest_.size()) + " bytes are left");
    return static_cast<std::size_t>(count);
  }
  [[nodiscard]] bool at_end() const { return rest_.empty(); }
  [[noreturn]] void fail(const std::string& why) const { throw Failure{Errc::FileCorrupt, std::string(what_) + ": " + why}; }

 private:
  std::string_view rest_;
  std::string_view what_;
};

template <class T>
concept Number = std::is_arithmetic_v<T> && !std::is_same_v<T, bool>;

template <Number T>
void CEREAL_SAVE_FUNCTION_NAME(Output& out, const T& value) {
  out.write(&value, sizeof value);
}
template <Number T>
void CEREAL_LOAD_FUNCTION_NAME(Input& in, T& value) {
  in.read(&value, sizeof value);
}
template <std::same_as<bool> T>
void CEREAL_SAVE_FUNCTION_NAME(Output& out, const T& value) {
  const char byte = value ? 1 : 0;
  out.write(&byte, 1);
}
template <std::same_as<bool> T>
void CEREAL_LOAD_FUNCTION_NAME(Input& in, T& value) {
  std::uint8_t byte = 0;
  in.read(&byte, 1);
  if (byte > 1) in.fail("has a truth value that is neither 0 nor 1");
  value = byte == 1;
}
inline void CEREAL_SAVE_FUNCTION_NAME(Output& out, const std::string& text) {
  out(static_cast<std::uint64_t>(text.size()));
  out.write(text.data(), text.size());
}
inline void CEREAL_LOAD_FUNCTION_NAME(Input& in, std::string& text) {
  text.resize(in.count());
  in.read(text.data(), text.size());
}
template <class T>
void CEREAL_SAVE_FUNCTION_NAME(Output& out, const std::vector<T>& list) {
  out(static_cast<std::uint64_t>(list.size()));
  for (const auto& element : list) out(element);
}
// Lists grow as their elements arrive, so that a count alone costs no memory.
template <class T>
void CEREAL_LOAD_FUNCTION_NAME(Input& in, std::vector<T>& list) {
  list.clear();
  for (auto left = in.count(); left > 0; --left) in(list.emplace_back());
}
template <class T>
void CEREAL_SAVE_FUNCTION_NAME(Output& out, const std::map<std::string, T>& map) {
  out(static_cast<std::uint64_t>(map.size()));
  for (const auto& [key, value] : map) out(key, value);
}
template <class T>
void CEREAL_LOAD_FUNCTION_NAME(Input& in, std::map<std::string, T>& map) {
  map.clear();
  for (auto left = in.count(); left > 0; --left) {
    std::string key;
    in(key);
    const auto [place, fresh] = map.try_emplace(std::move(key));
    if (!fresh) in.fail("names '" + place->first + "' twice");
    in(place->second);
  }
}
template <class T>
void CEREAL_SAVE_FUNCTION_NAME(Output& out, const std::optional<T>& value) {
  out(value.has_value());
  if (value) out(*value);
}
template <class T>
void CEREAL_LOAD_FUNCTION_NAME(Input& in, std::optional<T>& value) {
  bool there = false;
  in(there);
  value.reset();
  if (there) in(value.emplace());
}

/// The mark (8 bytes), the version, `contents` and the digest of all that; and back. Throws Failure{FileCorrupt} that begins with `what`.
[[nodiscard]] std::string framed(std::string_view mark, std::uint32_t version, std::string_view contents);
[[nodiscard]] std::string_view unframed(std::string_view bytes, std::string_view mark, std::uint32_t version, std::string_view what);

template <class T>
std::string frame(std::string_view mark, std::uint32_t version, const T& contents) {
  std::string bytes;
  Output out{bytes};
  out(contents);
  return framed(mark, version, bytes);
}

template <class T>
T unframe(std::string_view bytes, std::string_view mark, std::uint32_t version, std::string_view what) {
  Input in{unframed(bytes, mark, version, what), what};
  T contents;
  in(contents);
  if (!in.at_end()) in.fail("has bytes after its end");
  return contents;
}

}  // namespace troupe::detail

CEREAL_REGISTER_ARCHIVE(troupe::detail::Output)
CEREAL_REGISTER_ARCHIVE(troupe::detail::Input)
CEREAL_SETUP_ARCHIVE_TRAITS(troupe::detail::Input, troupe::detail::Output)
