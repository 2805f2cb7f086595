#include <troupe/errors.hpp>
#include <troupe/launch.hpp>

#include <algorithm>
#include <charconv>
#include <cmath>

namespace troupe {

namespace {

constexpr std::size_t most_hosts = 65'536;

[[noreturn]] void bad(const std::string& list, std::size_t at, const std::string& what) {
  throw Failure{Errc::InvalidConfig, "host list '" + list.substr(0, 256) + "', character " + std::to_string(at + 1) + ": " + what};
}

bool is_digit(char c) { return c >= '0' && c <= '9'; }

/// Reads one host list; every name is a product of its parts.
class HostList {
 public:
  explicit HostList(const std::string& list) : list_(list) {}

  std::vector<std::string> read() {
    do {
      const auto names = read_name();
      if (hosts_.size() + names.size() > most_hosts) bad(list_, at_, "more than 65536 hosts");
      hosts_.insert(hosts_.end(), names.begin(), names.end());
    } while (took(','));
    if (at_ < list_.size()) bad(list_, at_, std::string("'") + list_[at_] + "' does not belong here");
    return hosts_;
  }

 private:
  std::vector<std::string> read_name() {
    std::vector<std::string> names{""};
    const auto start = at_;
    while (at_ < list_.size() && list_[at_] != ',') {
      if (took('[')) {
        names = product(names, read_numbers());
      } else {
        const char c = list_[at_];
        if (!is_digit(c) && !(c >= 'a' && c <= 'z') && !(c >= 'A' && c <= 'Z') && c != '-' && c != '.' && c != '_' && c != ':') break;
        for (auto& name : names) name += c;
        ++at_;
      }
    }
    if (at_ == start) bad(list_, at_, "a host's name is missing");
    return names;
  }

  std::vector<std::string> read_numbers() {
    std::vector<std::string> numbers;
    do {
      const auto [first, width] = read_number();
      const auto last = took('-') ? read_number().first : first;
      if (last < first) bad(list_, at_, "the range goes backwards");
      if (last - first >= most_hosts || numbers.size() + (last - first) >= most_hosts) bad(list_, at_, "more than 65536 hosts");
      for (auto number = first; number <= last; ++number) {
        auto digits = std::to_string(number);
        numbers.push_back(std::string(width > digits.size() ? width - digits.size() : 0, '0') + digits);
      }
    } while (took(','));
    if (!took(']')) bad(list_, at_, "']' is missing");
    return numbers;
  }

  std::pair<std::size_t, std::size_t> read_number() {
    const auto start = at_;
    std::size_t value = 0;
    while (at_ < list_.size() && is_digit(list_[at_])) value = value * 10 + static_cast<std::size_t>(list_[at_++] - '0');
    if (at_ == start) bad(list_, at_, "a number is missing");
    if (at_ - start > 9) bad(list_, start, "the number is too long");
    return {value, at_ - start};
  }

  std::vector<std::string> product(const std::vector<std::string>& names, const std::vector<std::string>& numbers) const {
    if (names.size() * numbers.size() > most_hosts) bad(list_, at_, "more than 65536 hosts");
    std::vector<std::string> all;
    for (const auto& name : names) {
      for (const auto& number : numbers) all.push_back(name + number);
    }
    return all;
  }

  bool took(char c) {
    if (at_ >= list_.size() || list_[at_] != c) return false;
    ++at_;
    return true;
  }

  const std::string& list_;
  std::size_t at_ = 0;
  std::vector<std::string> hosts_;
};

std::string joined(const std::vector<std::string>& names) {
  std::string text;
  for (std::size_t i = 0; i < std::min<std::size_t>(names.size(), 16); ++i) text += (i ? ", " : "") + names[i];
  return text + (names.size() > 16 ? ", …" : "");
}

}  // namespace

std::vector<std::string> expand_hosts(const std::string& list) { return HostList{list}.read(); }

LaunchTask task_of_host(const std::vector<std::string>& hosts, const std::vector<std::string>& own_names) {
  for (std::size_t i = 0; i < hosts.size(); ++i) {
    const auto first = [](const std::string& name) { return name.substr(0, name.find('.')); };
    const auto is_own = [&](const std::string& own) { return own == hosts[i] || (!is_digit(hosts[i].front()) && first(own) == first(hosts[i]) && (own == first(own) || hosts[i] == first(hosts[i]))); };
    if (std::none_of(own_names.begin(), own_names.end(), is_own)) continue;
    return {"a host list", static_cast<int>(i), 0, static_cast<int>(i), static_cast<int>(hosts.size()), hosts.front(), 0, hosts, ""};
  }
  throw Failure{Errc::NotFound, "this host is none of " + joined(hosts) + "; it goes by " + joined(own_names) + ". Name it as one of these, or say --node-rank"};
}

HostPort parse_host_port(const std::string& text) {
  const auto colon = text.rfind(':');
  HostPort parsed;
  if (colon != std::string::npos && colon > 0) {
    parsed.host = text.substr(0, colon);
    if (parsed.host.size() > 2 && parsed.host.front() == '[' && parsed.host.back() == ']') parsed.host = parsed.host.substr(1, parsed.host.size() - 2);
    const auto* end = text.data() + text.size();
    const auto read = std::from_chars(text.data() + colon + 1, end, parsed.port);
    if (read.ec == std::errc{} && read.ptr == end && parsed.port >= 0 && parsed.port < 65'536 && colon + 1 < text.size()) return parsed;
  }
  throw Failure{Errc::InvalidConfig, "'" + text + "' is no address; write HOST:PORT, as 10.0.0.1:7077"};
}

std::uint64_t parse_bytes(const std::string& text) {
  double value = 0;
  const auto* end = text.data() + text.size();
  const auto read = std::from_chars(text.data(), end, value);
  std::string unit{read.ptr, end};
  std::transform(unit.begin(), unit.end(), unit.begin(), [](unsigned char c) { return static_cast<char>(std::toupper(c)); });
  if (unit.ends_with("IB")) unit.resize(unit.size() - 2);
  else if (unit.ends_with("B")) unit.resize(unit.size() - 1);
  const std::string units = "KMGT";
  const auto power = unit.empty() ? std::string::npos : units.find(unit);
  if (read.ec != std::errc{} || !(value >= 0) || (!unit.empty() && (unit.size() > 1 || power == std::string::npos))) {
    throw Failure{Errc::InvalidConfig, "'" + text + "' is no amount of memory; write it as 64G or 512M"};
  }
  const double bytes = unit.empty() ? value : std::ldexp(value, 10 * static_cast<int>(power + 1));
  if (bytes >= std::ldexp(1.0, 63)) throw Failure{Errc::InvalidConfig, "'" + text + "' is more memory than there can be"};
  return static_cast<std::uint64_t>(bytes);
}

}  // namespace troupe
