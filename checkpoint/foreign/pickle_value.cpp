#include <array>
#include <cstring>
#include <limits>
#include <troupe/errors.hpp>
#include <troupe/foreign_pickle.hpp>

#include "pickle_store.hpp"

namespace troupe {
namespace {

using detail::NodeKind;

constexpr std::array<std::string_view, 16> kKinds{
    "None", "bool", "int", "a large int", "float", "str",    "bytes",   "tuple",
    "list", "dict", "set", "a tensor",    "dtype", "device", "a class", "an object"};

PickleKind public_kind(NodeKind kind) noexcept {
  if (kind == NodeKind::Storage || kind == NodeKind::NumpyArray || kind == NodeKind::NumpyDtype)
    return PickleKind::Name;
  return static_cast<PickleKind>(kind);
}

[[noreturn]] void refuse_kind(const PickleValue& value, std::string_view wanted) {
  value.refuse("has " + std::string(name(value.kind())) + " where " + std::string(wanted) +
               " belongs");
}

}  // namespace

std::string_view name(PickleKind kind) noexcept { return kKinds[static_cast<std::size_t>(kind)]; }

PickleKind PickleValue::kind() const {
  return store_ ? public_kind(store_->nodes[node_].kind) : PickleKind::None;
}

std::int64_t PickleValue::integer() const {
  if (!is(PickleKind::Int) && !is(PickleKind::Bool)) refuse_kind(*this, "int");
  return store_->nodes[node_].integer;
}

double PickleValue::number() const {
  if (is(PickleKind::Float)) return store_->nodes[node_].real;
  if (!is(PickleKind::Int) && !is(PickleKind::Bool)) refuse_kind(*this, "float");
  return static_cast<double>(store_->nodes[node_].integer);
}

std::string_view PickleValue::text() const {
  switch (store_ ? store_->nodes[node_].kind : NodeKind::None) {
    case NodeKind::String:
    case NodeKind::Bytes:
    case NodeKind::BigInt:
    case NodeKind::Device:
      return store_->text(node_);
    case NodeKind::Name:
      return store_->names[store_->nodes[node_].index];
    default:
      refuse_kind(*this, "str");
  }
}

TorchDtype PickleValue::dtype() const {
  if (!is(PickleKind::Dtype)) refuse_kind(*this, "dtype");
  return static_cast<TorchDtype>(store_->nodes[node_].integer);
}

const ForeignTensor& PickleValue::tensor() const {
  if (!is(PickleKind::Tensor)) refuse_kind(*this, "a tensor");
  return store_->tensors[store_->nodes[node_].index];
}

std::size_t PickleValue::size() const {
  if (is(PickleKind::Dict)) return store_->items(node_).size() / 2;
  if (!is(PickleKind::Tuple) && !is(PickleKind::List) && !is(PickleKind::Set))
    refuse_kind(*this, "a container");
  return store_->items(node_).size();
}

PickleValue PickleValue::operator[](std::size_t i) const {
  if (is(PickleKind::Dict)) refuse_kind(*this, "a list");
  if (i >= size())
    refuse("has a " + std::string(name(kind())) + " of " + std::to_string(size()) +
           " items, too few");
  return {store_, store_->items(node_)[i]};
}

PickleValue PickleValue::key(std::size_t i) const {
  if (!is(PickleKind::Dict)) refuse_kind(*this, "dict");
  if (i >= size()) refuse("has a dict with too few members");
  return {store_, store_->items(node_)[2 * i]};
}

PickleValue PickleValue::value(std::size_t i) const {
  if (!is(PickleKind::Dict)) refuse_kind(*this, "dict");
  if (i >= size()) refuse("has a dict with too few members");
  return {store_, store_->items(node_)[2 * i + 1]};
}

std::optional<PickleValue> PickleValue::find(std::string_view member) const {
  if (is(PickleKind::Object)) {
    const auto inner = state();
    return inner && inner->is(PickleKind::Dict) ? inner->find(member) : std::nullopt;
  }
  for (auto i = size(); i-- > 0;) {
    if (const auto k = key(i); k.is(PickleKind::String) && k.text() == member) return value(i);
  }
  return std::nullopt;
}

PickleValue PickleValue::at(std::string_view member) const {
  if (!is(PickleKind::Dict) && !is(PickleKind::Object))
    refuse_kind(*this, "a dict with '" + std::string(member) + "'");
  const auto found = find(member);
  if (!found) refuse("lacks '" + std::string(member) + "'");
  return *found;
}

std::string_view PickleValue::class_name() const {
  if (!is(PickleKind::Object)) refuse_kind(*this, "an object");
  return store_->names[store_->nodes[store_->items(node_)[0]].index];
}

PickleValue PickleValue::arguments() const {
  if (!is(PickleKind::Object)) refuse_kind(*this, "an object");
  return {store_, store_->items(node_)[1]};
}

std::optional<PickleValue> PickleValue::state() const {
  if (!is(PickleKind::Object)) refuse_kind(*this, "an object");
  const auto& items = store_->items(node_);
  return items.size() > 2 ? std::optional{PickleValue{store_, items[2]}} : std::nullopt;
}

void PickleValue::refuse(const std::string& text) const {
  throw Failure{Errc::FileCorrupt,
                (store_ ? store_->what : std::string{"an empty value"}) + ": " + text};
}

}  // namespace troupe
