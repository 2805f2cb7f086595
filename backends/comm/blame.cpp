// Who is to blame when a collective does not come about, in words.
#include "blame.hpp"

#include <map>

namespace troupe::detail {

std::string list_ranks(const std::vector<int>& ranks) {
  std::string text;
  for (std::size_t i = 0; i < ranks.size();) {
    auto last = i;
    while (last + 1 < ranks.size() && ranks[last + 1] == ranks[last] + 1) ++last;
    if (!text.empty()) text += ", ";
    text += std::to_string(ranks[i]);
    if (last != i) text += (last == i + 1 ? ", " : "-") + std::to_string(ranks[last]);
    i = last + 1;
  }
  return text.empty() ? "none" : text;
}

namespace {

std::string ranks_text(const std::vector<int>& ranks) { return (ranks.size() == 1 ? "rank " : "ranks ") + list_ranks(ranks); }

std::string duration_text(std::chrono::milliseconds time) {
  return time.count() % 1000 == 0 ? std::to_string(time.count() / 1000) + " s" : std::to_string(time.count()) + " ms";
}

std::string describe(const Record& record) {
  constexpr std::string_view ops[] = {"sum", "mean", "max", "min"};
  std::string text{name(record.call)};
  if (record.call == Call::Barrier) return text;
  if (record.call == Call::AllReduce || record.call == Call::ReduceScatter)
    (text += ' ') += ops[static_cast<std::size_t>(record.op)];
  if (record.call == Call::Broadcast) text += " from rank " + std::to_string(record.root);
  return text + ' ' + std::to_string(record.bytes) + " bytes " + std::string{name(record.dtype)};
}

}  // namespace

bool agree(SharedState& state, std::uint64_t sequence) {
  const auto same = [](const Record& a, const Record& b) {
    return a.call == b.call && a.op == b.op && a.dtype == b.dtype && a.result == b.result && a.root == b.root && a.bytes == b.bytes;
  };
  const auto& first = state.record(sequence, 0);
  bool agreed = true;
  for (int r = 1; r < state.size() && agreed; ++r) agreed = same(first, state.record(sequence, r));
  if (agreed) return true;
  std::map<std::string, std::vector<int>> calls;
  for (int r = 0; r < state.size(); ++r) calls[describe(state.record(sequence, r))].push_back(r);
  std::string text = "collective #" + std::to_string(sequence) + " differs between ranks:";
  for (const char* separator = " "; const auto& [call, ranks] : calls) {
    text += separator + ranks_text(ranks) + " called " + call;
    separator = "; ";
  }
  state.fail(Errc::CollectiveMismatch, text);
  return false;
}

void end_when_nobody_comes(SharedState& state, int rank, const Awaited& awaited) {
  const bool late = std::chrono::steady_clock::now() >= awaited.deadline;
  if (!late && state.header().num_left.load(std::memory_order_acquire) == 0) return;
  std::vector<int> missing, gone, waiting, working;
  for (int r = 0; r < state.size(); ++r) {
    const bool left = state.rank(r).left.load(std::memory_order_acquire) != 0;  // read first: it may come, then leave
    const bool came = state.record(awaited.sequence, r).sequence.load(std::memory_order_acquire) >= awaited.sequence;
    const int known_as = state.members()[static_cast<std::size_t>(r)];
    (came ? waiting : left ? gone : missing).push_back(known_as);
    if (r != rank && state.rank(r).working.load(std::memory_order_relaxed) != 0) working.push_back(known_as);
  }
  const auto label = std::string{name(awaited.call)} + " #" + std::to_string(awaited.sequence) + ": ";
  const auto within = " within " + duration_text(awaited.timeout);
  if (!gone.empty())
    state.fail(Errc::Aborted, label + ranks_text(gone) + " left the group (waiting: " + list_ranks(waiting) + ")");
  else if (late && missing.empty())
    state.fail(Errc::DeadlinePassed,
               label + "all ranks came, but it was not finished" + within + " (still working: " + list_ranks(working) + ")");
  else if (late)
    state.fail(Errc::DeadlinePassed, label + ranks_text(missing) + " did not come" + within + " (waiting: " + list_ranks(waiting) + ")");
}

}  // namespace troupe::detail
