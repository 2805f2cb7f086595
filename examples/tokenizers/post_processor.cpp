#include "post_processor.hpp"

#include <troupe/errors.hpp>

namespace troupe::detail {

Template Template::plain() {
  return {{{Kind::First, {}, 0}}, {{Kind::First, {}, 0}, {Kind::Second, {}, 1}}};
}

Template Template::bos_eos(std::optional<std::int64_t> bos, std::optional<std::int64_t> eos) {
  Template out;
  const auto add = [&](std::vector<Item>& items, Kind kind, std::int64_t type) {
    if (bos) items.push_back({Kind::Special, {*bos}, type});
    items.push_back({kind, {}, type});
    if (eos) items.push_back({Kind::Special, {*eos}, type});
  };
  add(out.single, Kind::First, 0);
  add(out.pair, Kind::First, 0);
  add(out.pair, Kind::Second, 1);
  return out;
}

std::size_t Template::num_special(const std::vector<Item>& items) {
  std::size_t count = 0;
  for (const auto& item : items) count += item.ids.size();
  return count;
}

namespace {

using Kind = Template::Kind;
using HasId = std::function<bool(std::int64_t)>;

std::vector<std::int64_t> read_ids(JsonSection& specials, const std::string& name,
                                   const HasId& has_id) {
  auto special = specials.section(name.c_str());
  special.ignore("id");
  special.ignore("tokens");
  const auto& list = special.value("ids");
  std::vector<std::int64_t> out;
  for (const auto& id : list) {
    if (!id.is_number_integer() || !has_id(id.get<std::int64_t>()))
      special.corrupt("ids", "has " + id.dump() + ", which is no token's id");
    out.push_back(id.get<std::int64_t>());
  }
  special.finish();
  return out;
}

std::vector<Template::Item> read_items(JsonSection& section, const char* key, const HasId& has_id) {
  std::vector<Template::Item> out;
  int firsts = 0, seconds = 0;
  for (auto& item : section.sections(key)) {
    const bool is_text = item.has("Sequence");
    auto inner = item.section(is_text ? "Sequence" : "SpecialToken");
    item.finish();
    Template::Item next;
    next.type_id = inner.integer("type_id", 0);
    const auto id = inner.string("id");
    inner.finish();
    if (is_text) {
      if (id != "A" && id != "B") inner.corrupt("id", "is '" + id + "'; there are: A B");
      next.kind = id == "A" ? Kind::First : Kind::Second;
      ++(id == "A" ? firsts : seconds);
    } else {
      next.kind = Kind::Special;
      auto specials = section.section("special_tokens");
      next.ids = read_ids(specials, id, has_id);
    }
    out.push_back(std::move(next));
  }
  const bool pair = std::string_view{key} == "pair";
  if (firsts != 1 || seconds != (pair ? 1 : 0))
    section.unsupported(key, "should hold each text once");
  return out;
}

/// ["[SEP]", 102]
std::int64_t read_named_id(JsonSection& section, const char* key, const HasId& has_id) {
  const auto& value = section.value(key);
  if (!value.is_array() || value.size() != 2 || !value[1].is_number_integer() ||
      !has_id(value[1].get<std::int64_t>()))
    section.corrupt(key, "should be a token and its id, not " +
                             value.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace));
  return value[1].get<std::int64_t>();
}

Template read_sequence(JsonSection& section, const HasId& has_id, int depth);

Template read(JsonSection section, const HasId& has_id, int depth) {
  Template out;
  const auto type = section.string("type");
  if (type == "TemplateProcessing") {
    out.single = read_items(section, "single", has_id);
    out.pair = read_items(section, "pair", has_id);
    section.ignore("special_tokens");
  } else if (type == "BertProcessing" || type == "RobertaProcessing") {
    const bool bert = type == "BertProcessing";
    const Template::Item sep{Kind::Special, {read_named_id(section, "sep", has_id)}, 0};
    const Template::Item cls{Kind::Special, {read_named_id(section, "cls", has_id)}, 0};
    auto last = sep;
    last.type_id = bert ? 1 : 0;
    const Template::Item first{Kind::First, {}, 0}, second{Kind::Second, {}, last.type_id};
    out.single = {cls, first, sep};
    out.pair = bert ? std::vector{cls, first, sep, second, last}
                    : std::vector{cls, first, sep, sep, second, last};
    section.ignore("trim_offsets");
    section.ignore("add_prefix_space");
  } else if (type == "ByteLevel") {  // concerns offsets only
    out = Template::plain();
    for (const auto* key : {"add_prefix_space", "trim_offsets", "use_regex"}) section.ignore(key);
  } else if (type == "Sequence") {
    out = read_sequence(section, has_id, depth);
  } else {
    section.unsupported("type", "'" + type +
                                    "' is not supported; there are: TemplateProcessing "
                                    "BertProcessing RobertaProcessing ByteLevel Sequence");
  }
  section.finish();
  return out;
}

Template read_sequence(JsonSection& section, const HasId& has_id, int depth) {
  if (depth > 4) section.unsupported("processors", "is a sequence in a sequence, over 4 deep");
  auto out = Template::plain();
  bool adds = false;
  for (auto& step : section.sections("processors")) {
    auto next = read(step, has_id, depth + 1);
    if (Template::num_special(next.pair) == 0) continue;
    if (adds) section.unsupported("processors", "has two steps that add tokens");
    adds = true;
    out = std::move(next);
  }
  return out;
}

}  // namespace

Template read_post_processor(JsonSection section, const std::function<bool(std::int64_t)>& has_id) {
  return read(std::move(section), has_id, 0);
}

}  // namespace troupe::detail
