#include "pickle_reader.hpp"

#include <bit>
#include <cstdio>
#include <utility>

#include "../safetensors_json.hpp"
#include "little_endian.hpp"

namespace troupe::detail {
namespace {

constexpr std::uint64_t kMaxIntegerBytes = 1024;
constexpr std::size_t kMaxMarks = 1000;
constexpr std::uint8_t kStop = '.';

/// Names from Python's pickletools.
enum Op : std::uint8_t {
  BININT = 'J',
  BININT1 = 'K',
  BININT2 = 'M',
  LONG1 = 0x8a,
  LONG4 = 0x8b,
  BINFLOAT = 'G',
  NONE = 'N',
  NEWTRUE = 0x88,
  NEWFALSE = 0x89,
  BINUNICODE = 'X',
  SHORT_BINUNICODE = 0x8c,
  BINUNICODE8 = 0x8d,
  SHORT_BINBYTES = 'C',
  BINBYTES = 'B',
  BINBYTES8 = 0x8e,
  BYTEARRAY8 = 0x96,
  MARK = '(',
  EMPTY_TUPLE = ')',
  TUPLE = 't',
  TUPLE1 = 0x85,
  TUPLE2 = 0x86,
  TUPLE3 = 0x87,
  EMPTY_LIST = ']',
  APPEND = 'a',
  APPENDS = 'e',
  EMPTY_DICT = '}',
  SETITEM = 's',
  SETITEMS = 'u',
  EMPTY_SET = 0x8f,
  ADDITEMS = 0x90,
  FROZENSET = 0x91,
  BINGET = 'h',
  LONG_BINGET = 'j',
  BINPUT = 'q',
  LONG_BINPUT = 'r',
  MEMOIZE = 0x94,
  PROTO = 0x80,
  FRAME = 0x95,
  GLOBAL = 'c',
  STACK_GLOBAL = 0x93,
  REDUCE = 'R',
  NEWOBJ = 0x81,
  BUILD = 'b',
  BINPERSID = 'Q',
  POP = '0'
};

std::string hex(std::uint8_t op) {
  char text[8];
  std::snprintf(text, sizeof text, "0x%02x", op);
  return text;
}

}  // namespace

PickleReader::PickleReader(std::span<const std::byte> bytes, std::uint64_t base,
                           const PickleOptions& options, StorageSource storages, PickleStore& store)
    : bytes_(bytes), base_(base), options_(options), source_(std::move(storages)), store_(store) {
  none_ = make(NodeKind::None);
  true_ = make_integer(NodeKind::Bool, 1);
  false_ = make_integer(NodeKind::Bool, 0);
}

void PickleReader::refuse(const std::string& text, Errc code) const {
  throw Failure{code, store_.what + ": the pickle " + text + " (byte " +
                          std::to_string(base_ + op_at_) + ")"};
}

std::span<const std::byte> PickleReader::take(std::uint64_t count) {
  if (count > bytes_.size() - at_) {
    refuse("is cut off: " + std::to_string(count) + " bytes should follow, there are " +
           std::to_string(bytes_.size() - at_));
  }
  at_ += count;
  return bytes_.subspan(at_ - count, count);
}

template <class T>
T PickleReader::take_number() {
  return little_endian<T>(take(sizeof(T)), 0);
}

std::string_view PickleReader::take_text(std::uint64_t count) {
  const auto bytes = take(count);
  if (count > 0xFFFFFFFF) refuse_unsupported("has a string beyond 4 GB");
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

std::string_view PickleReader::take_line() {
  const std::string_view rest{reinterpret_cast<const char*>(bytes_.data()) + at_,
                              bytes_.size() - at_};
  const auto end = rest.substr(0, 1024).find('\n');
  if (end == std::string_view::npos) refuse("has a name without an end");
  at_ += end + 1;
  return rest.substr(0, end);
}

std::uint32_t PickleReader::make(NodeKind kind) {
  if (store_.nodes.size() >= options_.max_objects)
    refuse("has more than " + std::to_string(options_.max_objects) +
           " values (PickleOptions::max_objects)");
  store_.nodes.emplace_back().kind = kind;
  return static_cast<std::uint32_t>(store_.nodes.size() - 1);
}

std::uint32_t PickleReader::make_integer(NodeKind kind, std::int64_t value) {
  const auto node = make(kind);
  store_.nodes[node].integer = value;
  return node;
}

std::uint32_t PickleReader::make_text(NodeKind kind, std::string_view text) {
  const auto node = make(kind);
  store_.nodes[node].text = text.data();
  store_.nodes[node].size = static_cast<std::uint32_t>(text.size());
  return node;
}

void PickleReader::count_copy(std::uint64_t bytes) const {
  copied_ += bytes;
  if (copied_ > 2 * bytes_.size()) refuse("uses the same bytes too often");
}

std::uint32_t PickleReader::make_items(NodeKind kind, Items items) {
  items_ += items.size();
  if (items_ > 4ULL * options_.max_objects) refuse("uses the same values too often");
  const auto node = make(kind);
  store_.nodes[node].index = store_.lists.size();
  store_.lists.push_back(std::move(items));
  return node;
}

std::string_view PickleReader::text_of(std::uint32_t node, std::string_view what) const {
  if (kind(node) != NodeKind::String) refuse("has no str as " + std::string(what));
  return store_.text(node);
}

std::int64_t PickleReader::integer_of(std::uint32_t node, std::string_view what) const {
  if (kind(node) != NodeKind::Int) refuse("has no int as " + std::string(what));
  return store_.nodes[node].integer;
}

const Items& PickleReader::tuple_of(std::uint32_t node, std::string_view what) const {
  if (kind(node) != NodeKind::Tuple) refuse("has no tuple as " + std::string(what));
  return store_.items(node);
}

void PickleReader::push(std::uint32_t node) {
  if (stack_.size() >= options_.max_stack)
    refuse("needs a stack of more than " + std::to_string(options_.max_stack) +
           " values (PickleOptions::max_stack)");
  stack_.push_back(node);
}

std::uint32_t PickleReader::top() const {
  if (stack_.size() <= (marks_.empty() ? 0 : marks_.back()))
    refuse("takes a value from an empty stack");
  return stack_.back();
}

std::uint32_t PickleReader::pop() {
  const auto node = top();
  stack_.pop_back();
  return node;
}

Items PickleReader::pop_to_mark() {
  if (marks_.empty()) refuse("goes back to a mark that was not set");
  const auto first = stack_.begin() + static_cast<std::ptrdiff_t>(marks_.back());
  Items out{first, stack_.end()};
  stack_.erase(first, stack_.end());
  marks_.pop_back();
  return out;
}

/// Picklers number what they remember 0, 1, 2 …, so an index beyond the number of values is a lie.
void PickleReader::remember(std::uint64_t index) {
  const auto node = top();
  if (index > store_.nodes.size())
    refuse("remembers value number " + std::to_string(index) + " before there are as many");
  if (index >= memo_.size()) memo_.resize(index + 1, ~0U);
  memo_[index] = node;
}

void PickleReader::recall(std::uint64_t index) {
  if (index >= memo_.size() || memo_[index] == ~0U)
    refuse("recalls value number " + std::to_string(index) + ", which it did not remember");
  push(memo_[index]);
}

std::uint32_t PickleReader::read() {
  for (;;) {
    op_at_ = at_;
    const auto op = take_number<std::uint8_t>();
    if (op == kStop) break;
    if (!step_scalar(op) && !step_text(op) && !step_container(op) && !step_memo(op) &&
        !step_object(op))
      refuse_unsupported("has the opcode " + hex(op) + ", which torch.save does not write");
  }
  const auto root = pop();
  if (!stack_.empty() || !marks_.empty()) refuse("ends with values left over");
  if (at_ != bytes_.size()) refuse("goes on after its end");
  check_tree(store_, root, options_, bytes_.size());
  return root;
}

bool PickleReader::step_scalar(std::uint8_t op) {
  switch (op) {
    case NONE:
      push(none_);
      return true;
    case NEWTRUE:
      push(true_);
      return true;
    case NEWFALSE:
      push(false_);
      return true;
    case BININT:
      push(make_integer(NodeKind::Int, static_cast<std::int32_t>(take_number<std::uint32_t>())));
      return true;
    case BININT1:
      push(make_integer(NodeKind::Int, take_number<std::uint8_t>()));
      return true;
    case BININT2:
      push(make_integer(NodeKind::Int, take_number<std::uint16_t>()));
      return true;
    case LONG1:
      long_integer(take_number<std::uint8_t>());
      return true;
    case LONG4:
      long_integer(take_number<std::uint32_t>());
      return true;
    case BINFLOAT: {
      std::uint64_t bits = 0;
      for (const auto byte : take(8)) bits = bits << 8 | std::to_integer<std::uint64_t>(byte);
      const auto node = make(NodeKind::Float);
      store_.nodes[node].real = std::bit_cast<double>(bits);
      push(node);
      return true;
    }
    default:
      return false;
  }
}

void PickleReader::long_integer(std::uint64_t count) {
  if (count > kMaxIntegerBytes)
    refuse("has an int of " + std::to_string(count) + " bytes, the limit is 1024");
  const auto text = take_text(count);
  if (count > 8) {
    push(make_text(NodeKind::BigInt, text));
    return;
  }
  std::uint64_t value =
      count > 0 && (static_cast<unsigned char>(text.back()) & 0x80U) != 0 ? ~0ULL : 0;
  for (auto i = count; i-- > 0;) value = value << 8 | static_cast<unsigned char>(text[i]);
  push(make_integer(NodeKind::Int, static_cast<std::int64_t>(value)));
}

bool PickleReader::step_text(std::uint8_t op) {
  const auto unicode = [&](std::uint64_t count) {
    const auto text = take_text(count);
    if (const auto bad = find_invalid_utf8(text); bad != std::string_view::npos)
      refuse("has a str that is not UTF-8");
    push(make_text(NodeKind::String, text));
    return true;
  };
  const auto raw = [&](std::uint64_t count) {
    push(make_text(NodeKind::Bytes, take_text(count)));
    return true;
  };
  switch (op) {
    case SHORT_BINUNICODE:
      return unicode(take_number<std::uint8_t>());
    case BINUNICODE:
      return unicode(take_number<std::uint32_t>());
    case BINUNICODE8:
      return unicode(take_number<std::uint64_t>());
    case SHORT_BINBYTES:
      return raw(take_number<std::uint8_t>());
    case BINBYTES:
      return raw(take_number<std::uint32_t>());
    case BINBYTES8:
    case BYTEARRAY8:
      return raw(take_number<std::uint64_t>());
    default:
      return false;
  }
}

bool PickleReader::step_container(std::uint8_t op) {
  const auto tuple = [&](std::size_t count) {
    Items items(count);
    while (count > 0) items[--count] = pop();
    push(make_items(NodeKind::Tuple, std::move(items)));
    return true;
  };
  switch (op) {
    case MARK:
      if (marks_.size() >= kMaxMarks) refuse("has more than 1000 open marks");
      marks_.push_back(stack_.size());
      return true;
    case EMPTY_TUPLE:
      return tuple(0);
    case TUPLE1:
      return tuple(1);
    case TUPLE2:
      return tuple(2);
    case TUPLE3:
      return tuple(3);
    case TUPLE:
      push(make_items(NodeKind::Tuple, pop_to_mark()));
      return true;
    case EMPTY_LIST:
      push(make_items(NodeKind::List, {}));
      return true;
    case EMPTY_DICT:
      push(make_items(NodeKind::Dict, {}));
      return true;
    case EMPTY_SET:
      push(make_items(NodeKind::Set, {}));
      return true;
    case FROZENSET:
      push(make_items(NodeKind::Set, pop_to_mark()));
      return true;
    case APPEND:
      append({pop()});
      return true;
    case APPENDS:
      append(pop_to_mark());
      return true;
    case SETITEM: {
      const auto value = pop();
      const auto key = pop();
      set_items({key, value});
      return true;
    }
    case SETITEMS:
      set_items(pop_to_mark());
      return true;
    case ADDITEMS: {
      const auto items = pop_to_mark();
      const auto set = top();
      if (kind(set) != NodeKind::Set) refuse("adds to what is no set");
      auto& list = store_.lists[store_.nodes[set].index];
      list.insert(list.end(), items.begin(), items.end());
      return true;
    }
    default:
      return false;
  }
}

void PickleReader::append(const Items& items) {
  const auto list = top();
  if (kind(list) != NodeKind::List) refuse("appends to what is no list");
  auto& there = store_.lists[store_.nodes[list].index];
  there.insert(there.end(), items.begin(), items.end());
}

void PickleReader::set_items(const Items& items) {
  if (items.size() % 2 != 0) refuse("has a key without a value");
  const auto dict = top();
  if (kind(dict) != NodeKind::Dict) refuse("sets members of what is no dict");
  auto& there = store_.lists[store_.nodes[dict].index];
  there.insert(there.end(), items.begin(), items.end());
}

bool PickleReader::step_memo(std::uint8_t op) {
  switch (op) {
    case BINGET:
      recall(take_number<std::uint8_t>());
      return true;
    case LONG_BINGET:
      recall(take_number<std::uint32_t>());
      return true;
    case BINPUT:
      remember(take_number<std::uint8_t>());
      return true;
    case LONG_BINPUT:
      remember(take_number<std::uint32_t>());
      return true;
    case MEMOIZE:
      remember(memo_.size());
      return true;
    default:
      return false;
  }
}

bool PickleReader::step_object(std::uint8_t op) {
  switch (op) {
    case PROTO:
      if (const auto protocol = take_number<std::uint8_t>(); protocol < 2 || protocol > 5)
        refuse_unsupported("has protocol " + std::to_string(protocol) + "; 2 to 5 are read");
      return true;
    case FRAME:
      if (const auto frame = take_number<std::uint64_t>(); frame > bytes_.size() - at_)
        refuse("is cut off inside a frame");
      return true;
    case GLOBAL: {
      const auto module = take_line();
      push_name(module, take_line());
      return true;
    }
    case STACK_GLOBAL: {
      const auto name = pop();
      const auto module = pop();
      push_name(text_of(module, "a module's name"), text_of(name, "a name"));
      return true;
    }
    case REDUCE:
      reduce();
      return true;
    case NEWOBJ:
      new_object();
      return true;
    case BUILD:
      build();
      return true;
    case BINPERSID:
      persistent_id();
      return true;
    case POP:
      (void)pop();
      return true;
    default:
      return false;
  }
}

}  // namespace troupe::detail
