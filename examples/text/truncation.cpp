#include "truncation.hpp"

#include <algorithm>
#include <string>
#include <troupe/errors.hpp>

namespace troupe::detail {
namespace {

[[noreturn]] void refuse(const std::string& text) { throw Failure{Errc::InvalidArgument, text}; }

std::pair<std::size_t, std::size_t> longest_first(std::size_t a, std::size_t b, std::size_t limit) {
  const auto [less, more] = std::minmax(a, b);
  auto n1 = less;
  auto n2 = n1 > limit ? n1 : std::max(n1, limit - n1);
  if (n1 + n2 > limit) {
    n1 = limit / 2;
    n2 = n1 + limit % 2;
  }
  n2 = std::min(n2, more);
  return a > b ? std::pair{n2, n1} : std::pair{n1, n2};
}

}  // namespace

std::pair<std::size_t, std::size_t> kept_lengths(std::size_t first,
                                                 std::optional<std::size_t> second,
                                                 std::size_t num_special, std::size_t max_length,
                                                 Truncation how) {
  const std::pair whole{first, second.value_or(0)};
  if (max_length == 0 || how == Truncation::None) return whole;
  if (max_length < num_special)
    refuse("max_length " + std::to_string(max_length) + " cannot hold the " +
           std::to_string(num_special) + " special tokens");
  const auto limit = max_length - num_special;
  const auto total = whole.first + whole.second;
  if (total <= limit) return whole;
  if (how == Truncation::LongestFirst)
    return second ? longest_first(first, *second, limit) : std::pair{limit, std::size_t{0}};
  const bool only_first = how == Truncation::OnlyFirst;
  if (!only_first && !second)
    refuse("only_second truncates the second text, but there is one text only");
  const auto excess = total - limit;
  const auto side = only_first ? first : *second;
  if (side <= excess) {
    refuse(std::string(only_first ? "the first" : "the second") + " text has " +
           std::to_string(side) + " pieces, too few to cut " + std::to_string(excess) +
           " off; use LongestFirst or a larger max_length");
  }
  return only_first ? std::pair{first - excess, whole.second} : std::pair{first, *second - excess};
}

}  // namespace troupe::detail
