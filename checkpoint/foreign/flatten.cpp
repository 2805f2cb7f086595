#include "flatten.hpp"

#include <utility>

namespace troupe::detail {
namespace {

constexpr std::size_t kMaxNames = 1'000'000;
constexpr std::size_t kMaxNameBytes = 64'000'000;

class Flattener {
 public:
  explicit Flattener(ForeignContents& out) : out_(out) {}

  /// The depth of a pickle is bounded when it is read.
  void add(const PickleValue& value, const std::string& name) {
    switch (value.kind()) {
      case PickleKind::Tensor:
        count(value, name);
        if (!out_.tensors.emplace(name, value.tensor()).second) refuse_twice(value, name);
        break;
      case PickleKind::Bool:
        return add_scalar(value, name, value.integer() != 0);
      case PickleKind::Int:
        return add_scalar(value, name, value.integer());
      case PickleKind::Float:
        return add_scalar(value, name, value.number());
      case PickleKind::String:
      case PickleKind::Device:
        return add_scalar(value, name, std::string(value.text()));
      case PickleKind::Dtype:
        return add_scalar(value, name, "torch." + std::string(troupe::name(value.dtype())));
      case PickleKind::Dict:
        return add_members(value, name);
      case PickleKind::Tuple:
      case PickleKind::List:
      case PickleKind::Set:
        for (std::size_t i = 0; i < value.size(); ++i)
          add(value[i], below(value, name, std::to_string(i)));
        break;
      case PickleKind::None:
      case PickleKind::BigInt:
      case PickleKind::Bytes:
      case PickleKind::Name:
      case PickleKind::Object:
        break;
    }
  }

 private:
  void add_members(const PickleValue& dict, const std::string& name) {
    for (std::size_t i = 0; i < dict.size(); ++i) {
      const auto key = dict.key(i);
      if (key.is(PickleKind::String)) {
        add(dict.value(i), below(dict, name, key.text()));
      } else if (key.is(PickleKind::Int)) {
        add(dict.value(i), below(dict, name, std::to_string(key.integer())));
      }
    }
  }

  void add_scalar(const PickleValue& value, const std::string& name, ForeignScalar scalar) {
    if (const auto* const text = std::get_if<std::string>(&scalar)) bytes_ += text->size();
    count(value, name);
    if (!out_.values.emplace(name, std::move(scalar)).second) refuse_twice(value, name);
  }

  std::string below(const PickleValue& value, const std::string& name, std::string_view key) {
    if (name.size() + key.size() > 1024) value.refuse("has a name of more than 1024 bytes");
    return name.empty() ? std::string(key) : name + "." + std::string(key);
  }

  void count(const PickleValue& value, const std::string& name) {
    bytes_ += name.size();
    if (++names_ > kMaxNames || bytes_ > kMaxNameBytes)
      value.refuse("has more than a million names, or 64 MB of them");
  }

  [[noreturn]] static void refuse_twice(const PickleValue& value, const std::string& name) {
    value.refuse("has two values named '" + name.substr(0, 200) + "'");
  }

  ForeignContents& out_;
  std::size_t names_ = 0;
  std::size_t bytes_ = 0;
};

}  // namespace

void flatten(const PickleValue& value, const std::string& prefix, ForeignContents& out) {
  Flattener{out}.add(value, prefix);
}

std::map<std::string_view, PickleValue> members_of(const PickleValue& dict) {
  std::map<std::string_view, PickleValue> out;
  for (std::size_t i = 0; i < dict.size(); ++i) {
    if (const auto key = dict.key(i); key.is(PickleKind::String)) out[key.text()] = dict.value(i);
  }
  return out;
}

bool is_plain_file_name(std::string_view name) noexcept {
  return !name.empty() && name != "." && name != ".." && name.find('/') == std::string_view::npos &&
         name.find('\0') == std::string_view::npos;
}

}  // namespace troupe::detail
