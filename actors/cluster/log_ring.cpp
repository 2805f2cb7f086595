#include "log_ring.hpp"

#include <algorithm>
#include <iterator>

namespace troupe::detail {

namespace {

constexpr std::size_t line_cost = 128;  // of a line beside its text

bool wants(const LogFilter& filter, const LogLine& line) { return (filter.run.empty() || filter.run == line.run) && (!filter.rank || *filter.rank == line.rank); }

}  // namespace

void LogRing::add(const std::string& run, int rank, const std::string& node, std::string text) {
  if (text.size() > options_.line_bytes) {
    text.resize(options_.line_bytes);
    text += " …";
  }
  std::vector<std::function<void()>> told;
  {
    const std::lock_guard lock{mutex_};
    const auto number = next_number_++;
    bytes_ += text.size() + line_cost;
    const auto& line = lines_.emplace(number, LogLine{number, run, rank, node, std::move(text)}).first->second;
    auto& numbers = of_rank_[{run, rank}];
    numbers.push_back(number);
    if (numbers.size() > options_.lines_per_rank) {
      const auto first = lines_.find(numbers.front());
      numbers.pop_front();
      bytes_ -= first->second.text.size() + line_cost;
      lines_.erase(first);
    }
    for (auto waiter = waiters_.begin(); waiter != waiters_.end();) {
      if (!wants(waiter->second.filter, line)) {
        ++waiter;
        continue;
      }
      told.push_back(std::move(waiter->second.told));
      waiter = waiters_.erase(waiter);
    }
    while (bytes_ > options_.total_bytes && !lines_.empty()) drop_oldest();
  }
  for (const auto& call : told) call();
}

void LogRing::drop_oldest() {
  const auto& oldest = lines_.begin()->second;
  const auto rank = of_rank_.find({oldest.run, oldest.rank});
  rank->second.pop_front();  // the oldest of all is its rank's oldest
  if (rank->second.empty()) of_rank_.erase(rank);
  bytes_ -= oldest.text.size() + line_cost;
  lines_.erase(lines_.begin());
}

LogPage LogRing::read(const LogFilter& filter, std::uint64_t after, std::size_t max_lines, std::size_t max_bytes, std::optional<std::size_t> tail) const {
  const std::lock_guard lock{mutex_};
  auto line = lines_.upper_bound(after);
  if (after == 0 && tail) {
    line = lines_.end();
    for (std::size_t wanted = 0; wanted < *tail && line != lines_.begin();) wanted += wants(filter, (--line)->second) ? 1 : 0;
  }
  LogPage page;
  page.next = std::max(after, next_number_ - 1);
  std::size_t bytes = 0;
  for (; line != lines_.end(); ++line) {
    if (!wants(filter, line->second)) continue;
    if (page.lines.size() >= max_lines || bytes > max_bytes) {
      page.next = page.lines.back().number;
      break;
    }
    bytes += line->second.text.size() + line_cost;
    page.lines.push_back(line->second);
  }
  // Numbers have no gaps but for lines that went.
  if (after > 0) page.dropped = page.next - after - static_cast<std::uint64_t>(std::distance(lines_.upper_bound(after), lines_.upper_bound(page.next)));
  return page;
}

std::uint64_t LogRing::when_more(LogFilter filter, std::uint64_t after, std::function<void()> told) {
  {
    const std::lock_guard lock{mutex_};
    const bool there = std::any_of(lines_.upper_bound(after), lines_.end(), [&](const auto& line) { return wants(filter, line.second); });
    if (!there) {
      waiters_.emplace(next_waiter_, Waiter{std::move(filter), std::move(told)});
      return next_waiter_++;
    }
  }
  told();
  return 0;
}

void LogRing::forget(std::uint64_t waiter) {
  const std::lock_guard lock{mutex_};
  waiters_.erase(waiter);
}

}  // namespace troupe::detail
