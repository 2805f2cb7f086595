#include <troupe/dataset/cursor.hpp>
#include <troupe/errors.hpp>

#include <nlohmann/json.hpp>

namespace troupe {

namespace {

constexpr int kVersion = 1;

const char* to_text(SplitEqual equal) {
  return equal == SplitEqual::Pad ? "pad" : equal == SplitEqual::Truncate ? "truncate" : "uneven";
}

SplitEqual equal_from(const std::string& text) {
  if (text == "pad") return SplitEqual::Pad;
  if (text == "truncate") return SplitEqual::Truncate;
  if (text == "uneven") return SplitEqual::Uneven;
  throw Failure{Errc::FileCorrupt, "data set cursor: equal is \"" + text + "\", neither pad, truncate nor uneven"};
}

RowRange range_from(const nlohmann::json& json) {
  if (!json.is_array() || json.size() != 7) throw Failure{Errc::FileCorrupt, "data set cursor: a range is not seven numbers"};
  const auto number = [&](std::size_t i) { return json[i].get<std::int64_t>(); };
  const RowRange range{{number(0), number(1)}, {number(2), number(3)}, number(4), number(5), number(6) != 0};
  if (range.first.fragment < 0 || range.first.row < 0 || range.last.row < 0 || range.last < range.first || range.skip < 0 || range.take < -1)
    throw Failure{Errc::FileCorrupt, "data set cursor: " + json.dump() + " is no range of rows"};
  return range;
}

}  // namespace

std::string DatasetCursor::to_json() const {
  nlohmann::json ranges = nlohmann::json::array();
  for (const auto& range : remaining)
    ranges.push_back({range.first.fragment, range.first.row, range.last.fragment, range.last.row, range.skip, range.take, range.padding ? 1 : 0});
  return nlohmann::json{{"version", kVersion}, {"fingerprint", fingerprint}, {"rank", rank}, {"world_size", world_size}, {"equal", to_text(equal)},
                        {"epoch", epoch}, {"rows_delivered", rows_delivered}, {"remaining", ranges}}
      .dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

DatasetCursor DatasetCursor::from_json(const std::string& text) {
  try {
    const auto json = nlohmann::json::parse(text);
    const int version = json.at("version").get<int>();
    if (version > kVersion)
      throw Failure{Errc::Unsupported, "data set cursor: version " + std::to_string(version) + " was written by a newer Troupe; this one reads up to " +
                                           std::to_string(kVersion)};
    DatasetCursor cursor;
    json.at("fingerprint").get_to(cursor.fingerprint);
    json.at("rank").get_to(cursor.rank);
    json.at("world_size").get_to(cursor.world_size);
    cursor.equal = equal_from(json.at("equal").get<std::string>());
    json.at("epoch").get_to(cursor.epoch);
    json.at("rows_delivered").get_to(cursor.rows_delivered);
    for (const auto& range : json.at("remaining")) cursor.remaining.push_back(range_from(range));
    if (cursor.world_size < 1 || cursor.rank < 0 || cursor.rank >= cursor.world_size || cursor.epoch < 0)
      throw Failure{Errc::FileCorrupt, "data set cursor: rank " + std::to_string(cursor.rank) + " of " + std::to_string(cursor.world_size) + ", epoch " +
                                           std::to_string(cursor.epoch) + " cannot be"};
    return cursor;
  } catch (const nlohmann::json::exception& error) {
    throw Failure{Errc::FileCorrupt, std::string{"data set cursor: "} + error.what()};
  }
}

}  // namespace troupe
