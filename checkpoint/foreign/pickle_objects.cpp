#include <algorithm>
#include <utility>

#include "pickle_reader.hpp"

namespace troupe::detail {
namespace {

constexpr std::size_t kMaxNameBytes = 1000;
constexpr std::size_t kMaxArguments = 16;

/// For messages: a name from a file, shortened, without bytes that a terminal would obey.
std::string shown(std::string_view text) {
  std::string out{text.substr(0, 100)};
  std::ranges::replace_if(
      out, [](char c) { return static_cast<unsigned char>(c) < 0x20 || c == 0x7F; }, '?');
  return out;
}

}  // namespace

bool PickleReader::is_data_class(std::string_view full) const {
  return std::ranges::any_of(options_.data_classes, [&](const std::string& allowed) {
    return allowed.ends_with('.') ? full.starts_with(allowed) : full == allowed;
  });
}

void PickleReader::push_name(std::string_view module, std::string_view name) {
  if (module.size() + name.size() > kMaxNameBytes) refuse("has a name of more than 1000 bytes");
  const auto full = std::string(module) + "." + std::string(name);
  if (const auto found = names_.find(full); found != names_.end()) return push(found->second);
  auto known = known_name(module, name);
  if (!known && is_data_class(full)) known = KnownName{Meaning::DataClass, {}};
  if (!known || (known->meaning == Meaning::GetAttr && options_.data_classes.empty())) {
    refuse_unsupported("names " + shown(full) +
                       ", which is not read: only tensors, containers, numbers and strings are, "
                       "and nothing is ever called");
  }
  if (known->meaning == Meaning::Dtype)
    return push(make_integer(NodeKind::Dtype, static_cast<std::int64_t>(known->dtype)));
  const auto node = make(NodeKind::Name);
  store_.nodes[node].index = store_.names.size();
  store_.names.push_back(full);
  meanings_.push_back(*known);
  names_.emplace(full, node);
  push(node);
}

Meaning PickleReader::meaning_of(std::uint32_t node) const {
  return kind(node) == NodeKind::Name ? meanings_[store_.nodes[node].index].meaning
                                      : Meaning::Mentioned;
}

void PickleReader::reduce() {
  const auto arguments = pop();
  const auto callable = pop();
  if (kind(callable) != NodeKind::Name) refuse_unsupported("calls what is no name");
  (void)tuple_of(arguments, "the arguments of a call");
  push(call(callable, arguments));
}

std::uint32_t PickleReader::call(std::uint32_t callable, std::uint32_t arguments) {
  const auto meaning = meaning_of(callable);
  if (meaning == Meaning::DataClass) return make_items(NodeKind::Object, {callable, arguments});
  if (store_.items(arguments).size() > kMaxArguments) refuse("has a call with too many arguments");
  const Items items = store_.items(arguments);
  switch (meaning) {
    case Meaning::OrderedDict:
    case Meaning::Counter:
      return dict_from(items, false);
    case Meaning::DefaultDict:
      return dict_from(items, true);
    case Meaning::Set:
      return set_from(items);
    case Meaning::Bytes:
      if (!items.empty()) refuse_unsupported("calls bytes with arguments");
      return make_bytes({});
    case Meaning::Encode:
      return encode(items);
    case Meaning::GetAttr:
      return get_attribute(items);
    case Meaning::Device:
      return device(items);
    case Meaning::Size:
      if (items.size() != 1) refuse("has a torch.Size without sizes");
      return make_items(NodeKind::Tuple, tuple_of(items[0], "torch.Size"));
    case Meaning::Layout:
      if (items.size() != 1 || text_of(items[0], "a layout") != "torch.strided")
        refuse_unsupported("has a layout other than torch.strided");
      return items[0];
    case Meaning::Tensor2:
    case Meaning::Tensor3:
      return tensor(items, meaning);
    case Meaning::Parameter:
      if (items.empty() || kind(items[0]) != NodeKind::Tensor)
        refuse("has a parameter without a tensor");
      return items[0];
    case Meaning::TypedTensor:
      return typed_tensor(items);
    case Meaning::NumpyArray:
      if (items.empty() || meaning_of(items[0]) != Meaning::NumpyNdarray)
        refuse_unsupported("has a numpy array of another class");
      return make(NodeKind::NumpyArray);
    case Meaning::NumpyDtype:
      return numpy_type(items);
    case Meaning::NumpyBuffer:
      if (items.size() != 4 || text_of(items[3], "an order") != "C")
        refuse_unsupported("has a numpy array that is not in C order");
      return make_tensor(numpy_array(items[2], items[1], items[0]));
    case Meaning::NumpyScalar:
      return numpy_scalar(items);
    default:
      refuse_unsupported("calls " + store_.names[store_.nodes[callable].index] +
                         ", and nothing is ever called");
  }
}

/// (function, class, its arguments, attributes): a tensor to which a library gave attributes.
std::uint32_t PickleReader::typed_tensor(const Items& arguments) {
  if (arguments.size() != 4) refuse("has a tensor whose arguments are malformed");
  const auto how = meaning_of(arguments[0]);
  if ((how != Meaning::Tensor2 && how != Meaning::Tensor3 && how != Meaning::Parameter) ||
      meaning_of(arguments[1]) != Meaning::TensorType)
    refuse_unsupported("has a tensor of another class than torch.Tensor and Parameter");
  (void)tuple_of(arguments[2], "a tensor's arguments");
  return call(arguments[0], arguments[2]);
}

std::uint32_t PickleReader::dict_from(const Items& arguments, bool factory_first) {
  const std::size_t first = factory_first ? 1 : 0;
  if (arguments.size() <= first) return make_items(NodeKind::Dict, {});
  if (arguments.size() > first + 1) refuse("makes a dict from too many arguments");
  if (kind(arguments[first]) == NodeKind::Dict)
    return make_items(NodeKind::Dict, store_.items(arguments[first]));
  if (kind(arguments[first]) != NodeKind::List)
    refuse("makes a dict from what is neither a dict nor a list");
  Items members;  // Python 2 wrote [(key, value), …]
  for (const auto pair : Items{store_.items(arguments[first])}) {
    if ((kind(pair) != NodeKind::Tuple && kind(pair) != NodeKind::List) ||
        store_.items(pair).size() != 2)
      refuse("makes a dict from what are no pairs");
    members.insert(members.end(), store_.items(pair).begin(), store_.items(pair).end());
  }
  return make_items(NodeKind::Dict, std::move(members));
}

std::uint32_t PickleReader::set_from(const Items& arguments) {
  if (arguments.empty()) return make_items(NodeKind::Set, {});
  if (arguments.size() != 1 ||
      (kind(arguments[0]) != NodeKind::List && kind(arguments[0]) != NodeKind::Tuple))
    refuse("makes a set from what is no list");
  return make_items(NodeKind::Set, store_.items(arguments[0]));
}

/// Each character below U+0100 becomes one byte.
std::uint32_t PickleReader::encode(const Items& arguments) {
  if (arguments.size() != 2 || text_of(arguments[1], "an encoding") != "latin1")
    refuse_unsupported("encodes a str by another encoding than latin1");
  const auto text = text_of(arguments[0], "what to encode");
  std::string bytes;
  for (std::size_t i = 0; i < text.size(); ++i) {
    const auto lead = static_cast<unsigned char>(text[i]);
    if (lead < 0x80) {
      bytes += text[i];
    } else if (lead <= 0xC3 && i + 1 < text.size()) {
      bytes +=
          static_cast<char>((lead & 3U) << 6 | (static_cast<unsigned char>(text[++i]) & 0x3FU));
    } else {
      refuse("encodes a str that latin1 does not have");
    }
  }
  return make_bytes(std::move(bytes));
}

std::uint32_t PickleReader::make_bytes(std::string bytes) {
  count_copy(bytes.size());
  store_.texts.push_back(std::move(bytes));
  return make_text(NodeKind::Bytes, store_.texts.back());
}

std::uint32_t PickleReader::get_attribute(const Items& arguments) {
  if (arguments.size() != 2 || meaning_of(arguments[0]) != Meaning::DataClass)
    refuse_unsupported("calls builtins.getattr, and nothing is ever called");
  (void)text_of(arguments[1], "a member's name");
  return make_items(NodeKind::Object, {arguments[0], make_items(NodeKind::Tuple, {arguments[1]})});
}

std::uint32_t PickleReader::device(const Items& arguments) {
  if (arguments.empty() || arguments.size() > 2) refuse("has a torch.device without a type");
  std::string text{text_of(arguments[0], "a device").substr(0, 100)};
  if (arguments.size() == 2)
    text += ":" + std::to_string(integer_of(arguments[1], "a device's number"));
  store_.texts.push_back(std::move(text));
  return make_text(NodeKind::Device, store_.texts.back());
}

void PickleReader::new_object() {
  const auto arguments = pop();
  const auto callable = pop();
  (void)tuple_of(arguments, "the arguments of an object");
  const auto meaning = meaning_of(callable);
  if (meaning == Meaning::OrderedDict || meaning == Meaning::Counter ||
      meaning == Meaning::DefaultDict || meaning == Meaning::DataClass)
    return push(call(callable, arguments));
  refuse_unsupported(
      "makes an object of " +
      (kind(callable) == NodeKind::Name ? store_.names[store_.nodes[callable].index] : "no class") +
      ", which is not read");
}

void PickleReader::build() {
  const auto state = pop();
  const auto object = top();
  switch (kind(object)) {
    case NodeKind::Dict:  // an OrderedDict's attributes, as the _metadata of a module's state_dict
      if (kind(state) != NodeKind::Dict && kind(state) != NodeKind::Tuple)
        refuse("gives a dict a state that is none");
      return;
    case NodeKind::Object: {
      auto& items = store_.lists[store_.nodes[object].index];
      if (items.size() > 2) refuse("gives an object two states");
      items.push_back(state);
      return;
    }
    case NodeKind::NumpyDtype:
      if (const auto& fields = tuple_of(state, "numpy.dtype's state");
          fields.size() < 2 ||
          (text_of(fields[1], "a byte order") != "<" && text_of(fields[1], "a byte order") != "|"))
        refuse_unsupported("has a numpy.dtype that is not little-endian");
      return;
    case NodeKind::NumpyArray: {
      const auto& fields = tuple_of(state, "numpy.ndarray's state");
      if (fields.size() != 5 || kind(fields[3]) != NodeKind::Bool)
        refuse("has a malformed numpy array");
      if (store_.nodes[fields[3]].integer != 0)
        refuse_unsupported("has a numpy array in Fortran order");
      auto array = numpy_array(fields[1], fields[2], fields[4]);
      store_.nodes[object].kind = NodeKind::Tensor;
      store_.nodes[object].index = store_.tensors.size();
      store_.tensors.push_back(std::move(array));
      return;
    }
    default:
      refuse_unsupported("gives a state to what has none");
  }
}

}  // namespace troupe::detail
