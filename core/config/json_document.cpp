#include "document.hpp"

#include <troupe/errors.hpp>

#include <iterator>
#include <vector>

namespace troupe::detail {

namespace {

using Json = nlohmann::ordered_json;

constexpr std::size_t max_depth = 32;
constexpr int max_values = 10'000;

/// Characters that count the lines they pass, for the parser.
struct LineCounter {
  using iterator_category = std::input_iterator_tag;
  using value_type = char;
  using difference_type = std::ptrdiff_t;
  using pointer = const char*;
  using reference = const char&;

  const char* at;
  int* line;

  reference operator*() const { return *at; }
  LineCounter& operator++() {
    if (*at++ == '\n') ++*line;
    return *this;
  }
  LineCounter operator++(int) {
    const auto before = *this;
    ++*this;
    return before;
  }
  bool operator==(const LineCounter& other) const { return at == other.at; }
  bool operator!=(const LineCounter& other) const { return at != other.at; }
};

/// Builds a Document from the parser's events: what nlohmann::json's own builder does, and duplicates, depth, lines.
class Builder final : public nlohmann::json_sax<Json> {
 public:
  Builder(Document& document, const int& line) : document_(document), line_(line) {}

  bool null() override { return add(nullptr); }
  bool boolean(bool value) override { return add(value); }
  bool number_integer(number_integer_t value) override { return add(value); }
  bool number_unsigned(number_unsigned_t value) override { return add(value); }
  bool number_float(number_float_t value, const string_t& /*text*/) override { return add(value); }
  bool string(string_t& value) override { return add(value); }
  bool binary(binary_t& /*value*/) override { return false; }
  bool start_object(std::size_t /*size*/) override { return open(Json::object()); }
  bool start_array(std::size_t /*size*/) override { return open(Json::array()); }
  bool end_object() override { return close(); }
  bool end_array() override { return close(); }

  bool key(string_t& name) override {
    auto& level = levels_.back();
    level.key = name;
    const auto path = path_of(level);
    if (level.value->contains(name)) {
      const auto first = document_.lines.find(path);
      const int before = first == document_.lines.end() ? 0 : first->second;
      document_.lines[path] = line_;
      document_.fail(path, "is given twice, first in line " + std::to_string(before) + "; keep one");
    }
    document_.lines[path] = line_;
    return true;
  }

  bool parse_error(std::size_t /*position*/, const std::string& /*token*/, const nlohmann::detail::exception& error) override {
    const std::string text = error.what();
    const auto cause = text.find("; ");  // "[json.exception…] parse error at line 1, column 2: syntax error …; last read: …"
    const auto colon = text.find(": ");
    const auto from = colon == std::string::npos ? 0 : colon + 2;
    throw Failure{Errc::InvalidConfig, document_.name + ":" + std::to_string(line_) + ": is no valid JSON: " +
                                           text.substr(from, cause == std::string::npos ? cause : cause - from)};
  }

 private:
  struct Level {
    Json* value;
    std::string path;  ///< of the value itself
    std::string key;   ///< of the member that comes next
  };

  [[nodiscard]] static std::string path_of(const Level& level) {
    return level.path.empty() ? level.key : level.path + "." + level.key;
  }

  [[noreturn]] void too(const std::string& much) const {
    throw Failure{Errc::InvalidConfig, document_.name + ":" + std::to_string(line_) + ": " + much};
  }

  Json* place(Json value) {
    if (++values_ > max_values) too("holds more than " + std::to_string(max_values) + " values");
    if (levels_.empty()) {
      document_.root = std::move(value);
      return &document_.root;
    }
    auto& parent = *levels_.back().value;
    if (parent.is_array()) {
      parent.push_back(std::move(value));
      return &parent.back();
    }
    return &(parent[levels_.back().key] = std::move(value));
  }

  bool add(Json value) {
    place(std::move(value));
    return true;
  }

  bool open(Json value) {
    if (levels_.size() == max_depth) too("is nested deeper than " + std::to_string(max_depth) + " levels");
    const auto path = levels_.empty() ? std::string{} : path_of(levels_.back());
    levels_.push_back({place(std::move(value)), path, {}});
    return true;
  }

  bool close() {
    levels_.pop_back();
    return true;
  }

  Document& document_;
  const int& line_;
  std::vector<Level> levels_;
  int values_ = 0;
};

}  // namespace

Document parse_json(std::string_view text, std::string name) {
  Document document;
  document.name = std::move(name);
  int line = 1;
  Builder builder{document, line};
  const LineCounter begin{text.data(), &line};
  const LineCounter end{text.data() + text.size(), &line};
  (void)Json::sax_parse(begin, end, &builder, nlohmann::detail::input_format_t::json, /*strict=*/true, /*ignore_comments=*/true);
  if (!document.root.is_object()) document.fail("", "must be a JSON object, { … }");
  return document;
}

}  // namespace troupe::detail
