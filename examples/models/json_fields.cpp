#include "json_fields.hpp"

#include <algorithm>
#include <fstream>

namespace troupe::detail {

namespace fs = std::filesystem;
using nlohmann::json;

json read_json_object(const fs::path& file) {
  std::ifstream in{file, std::ios::binary};
  if (!in) throw Failure{Errc::FileNotFound, file.string() + ": no such file"};
  auto object = json::parse(in, nullptr, false);
  if (!object.is_object()) throw Failure{Errc::FileCorrupt, file.string() + ": is no JSON object"};
  return object;
}

void write_json(const fs::path& file, const nlohmann::ordered_json& object) {
  auto fresh = file;
  fresh += ".new";
  std::ofstream out{fresh, std::ios::binary};
  const bool written = static_cast<bool>((out << object.dump(2) << '\n').flush());
  out.close();
  std::error_code error;
  if (written) fs::rename(fresh, file, error);
  if (!written || error) throw Failure{Errc::StorageUnavailable, file.string() + ": cannot be written"};
}

void refuse_field(const json& value, const std::string& where, const char* key, const char* kind) {
  throw Failure{Errc::InvalidConfig, where + ": '" + key + "' should be " + kind + ", not " + value.dump()};
}

void read_bool(const json& object, const char* key, const std::string& where, bool& out) {
  const auto found = object.find(key);
  if (found == object.end() || found->is_null()) return;
  if (!found->is_boolean()) refuse_field(*found, where, key, "true or false");
  found->get_to(out);
}

void read_text(const json& object, const char* key, const std::string& where, std::string& out) {
  const auto found = object.find(key);
  if (found == object.end() || found->is_null()) return;
  if (!found->is_string()) refuse_field(*found, where, key, "a string");
  found->get_to(out);
}

void read_texts(const json& object, const char* key, const std::string& where, std::vector<std::string>& out) {
  const auto found = object.find(key);
  if (found == object.end() || found->is_null()) return;
  if (!found->is_array()) refuse_field(*found, where, key, "a list of strings");
  out.clear();
  for (const auto& item : *found) {
    if (!item.is_string()) refuse_field(*found, where, key, "a list of strings");
    out.push_back(item);
  }
}

std::vector<std::int64_t> read_tokens(const json& object, const char* key, const std::string& where) {
  const auto found = object.find(key);
  if (found == object.end() || found->is_null()) return {};
  std::vector<std::int64_t> tokens;
  const auto add = [&](const json& item) {
    if (!item.is_number_integer()) refuse_field(*found, where, key, "a token id or a list of them");
    tokens.push_back(item);
  };
  if (found->is_array()) std::for_each(found->begin(), found->end(), add);
  else add(*found);
  return tokens;
}

}  // namespace troupe::detail
