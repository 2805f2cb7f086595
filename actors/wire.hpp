#pragma once

#include <troupe/errors.hpp>
#include <troupe/result.hpp>

#include <cereal/cereal.hpp>
#include <cereal/types/map.hpp>
#include <cereal/types/optional.hpp>
#include <cereal/types/set.hpp>
#include <cereal/types/string.hpp>
#include <cereal/types/variant.hpp>

#include <cstring>
#include <exception>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <variant>
#include <vector>

// Messages as bytes: numbers as they lie in memory (so doubles keep every bit), lengths as u32 before what they count.

namespace troupe::detail {

constexpr std::size_t max_elements = 65'536;  // of a list

[[noreturn]] inline void bad(const std::string& what) { throw Failure{Errc::ProtocolError, what}; }

class WireOutput : public cereal::OutputArchive<WireOutput, cereal::AllowEmptyClassElision> {
 public:
  explicit WireOutput(std::string& bytes) : OutputArchive(this), bytes_(bytes) {}
  void write(const void* data, std::size_t size) { bytes_.append(static_cast<const char*>(data), size); }

 private:
  std::string& bytes_;
};

/// Reads what is there and never more: a length is compared with the bytes that are left before anything is allocated.
class WireInput : public cereal::InputArchive<WireInput, cereal::AllowEmptyClassElision> {
 public:
  explicit WireInput(std::string_view bytes) : InputArchive(this), rest_(bytes) {}
  void read(void* data, std::size_t size) {
    if (size > rest_.size()) bad("a message was cut short");
    std::memcpy(data, rest_.data(), size);
    rest_.remove_prefix(size);
  }
  std::size_t length() {
    std::uint32_t length = 0;
    read(&length, sizeof length);
    if (length > rest_.size()) bad("a message counts more than it has bytes");
    return length;
  }
  [[nodiscard]] bool at_end() const { return rest_.empty(); }

 private:
  std::string_view rest_;
};

template <class T>
concept Number = std::is_arithmetic_v<T> && !std::is_same_v<T, bool>;

template <Number T>
void CEREAL_SAVE_FUNCTION_NAME(WireOutput& out, const T& value) {
  out.write(&value, sizeof value);
}
template <Number T>
void CEREAL_LOAD_FUNCTION_NAME(WireInput& in, T& value) {
  in.read(&value, sizeof value);
}
inline void CEREAL_SAVE_FUNCTION_NAME(WireOutput& out, const bool& value) {
  const char byte = value ? 1 : 0;
  out.write(&byte, 1);
}
inline void CEREAL_LOAD_FUNCTION_NAME(WireInput& in, bool& value) {
  std::uint8_t byte = 0;
  in.read(&byte, 1);
  if (byte > 1) bad("a message has a truth value that is neither 0 nor 1");
  value = byte == 1;
}
template <class T>
void CEREAL_SAVE_FUNCTION_NAME(WireOutput& out, const cereal::BinaryData<T>& data) {
  out.write(data.data, static_cast<std::size_t>(data.size));
}
template <class T>
void CEREAL_LOAD_FUNCTION_NAME(WireInput& in, cereal::BinaryData<T>& data) {
  in.read(data.data, static_cast<std::size_t>(data.size));
}
template <class T>
void CEREAL_SAVE_FUNCTION_NAME(WireOutput& out, const cereal::SizeTag<T>& tag) {
  const auto length = static_cast<std::uint32_t>(tag.size);
  out.write(&length, sizeof length);
}
template <class T>
void CEREAL_LOAD_FUNCTION_NAME(WireInput& in, cereal::SizeTag<T>& tag) {
  tag.size = static_cast<std::remove_reference_t<T>>(in.length());
}
template <class T>
void CEREAL_SAVE_FUNCTION_NAME(WireOutput& out, const cereal::NameValuePair<T>& pair) {
  out(pair.value);
}
template <class T>
void CEREAL_LOAD_FUNCTION_NAME(WireInput& in, cereal::NameValuePair<T>& pair) {
  in(pair.value);
}

// Lists grow as their elements arrive, so that a count alone costs no memory.
template <class T>
void CEREAL_SAVE_FUNCTION_NAME(WireOutput& out, const std::vector<T>& list) {
  if (list.size() > max_elements) bad("a list has more than 65536 elements");
  out(cereal::make_size_tag(list.size()));
  for (const auto& element : list) out(element);
}
template <class T>
void CEREAL_LOAD_FUNCTION_NAME(WireInput& in, std::vector<T>& list) {
  const auto length = in.length();
  if (length > max_elements) bad("a list has more than 65536 elements");
  list.clear();
  for (std::size_t i = 0; i < length; ++i) in(list.emplace_back());
}

}  // namespace troupe::detail

CEREAL_REGISTER_ARCHIVE(troupe::detail::WireOutput)
CEREAL_REGISTER_ARCHIVE(troupe::detail::WireInput)
CEREAL_SETUP_ARCHIVE_TRAITS(troupe::detail::WireInput, troupe::detail::WireOutput)

namespace troupe {

using detail::WireInput;
using detail::WireOutput;

/// An enumerator as its number, which must be a known one.
template <class E>
struct Numbered {
  E& value;
  E largest;
};
template <class E>
void save(WireOutput& out, const Numbered<E>& numbered) {
  out(static_cast<std::underlying_type_t<E>>(numbered.value));
}
template <class E>
void load(WireInput& in, Numbered<E>& numbered) {
  std::underlying_type_t<E> number{};
  in(number);
  if (number > static_cast<std::underlying_type_t<E>>(numbered.largest)) {
    detail::bad("a message has an enumerator of unknown number " + std::to_string(number));
  }
  numbered.value = static_cast<E>(number);
}
inline Numbered<Errc> numbered(Errc& code) { return {code, Errc::NodeLost}; }

template <class Archive>
void serialize(Archive& ar, RunError& m) {
  ar(numbered(m.code), m.message, m.rank, m.signal, m.exit_code, m.last_lines, m.step, m.pid, m.details, m.node);
}

}  // namespace troupe

namespace troupe::detail {

/// An empty alternative of number `type`, which must be one.
template <class Variant, std::size_t... Index>
Variant alternative_of(std::uint16_t type, std::index_sequence<Index...>) {
  Variant message;
  ((type == Index ? (void)message.template emplace<Index>() : (void)0), ...);
  return message;
}

/// The alternative of number `type` from its bytes, all of them. Throws Failure{ProtocolError} naming `name`.
template <class Variant>
Variant read_alternative(std::uint16_t type, std::string_view bytes, const std::string& name) {
  try {
    auto message = alternative_of<Variant>(type, std::make_index_sequence<std::variant_size_v<Variant>>{});
    WireInput in{bytes};
    std::visit([&](auto& content) { in(content); }, message);
    if (!in.at_end()) bad("it is followed by bytes that are not part of it");
    return message;
  } catch (const Failure& failure) {
    bad("the peer sent a damaged " + name + ": " + failure.what());
  } catch (const std::exception& error) {  // cereal's
    bad("the peer sent a damaged " + name + ": " + error.what());
  }
}

}  // namespace troupe::detail
