// Who is to blame when a collective does not come about, in words.
#include "blame.hpp"

#include <algorithm>
#include <map>
#include <optional>

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

std::string seconds_text(std::chrono::nanoseconds time) {
  const auto tenths = std::chrono::duration_cast<std::chrono::milliseconds>(time).count() / 100;
  return std::to_string(tenths / 10) + "." + std::to_string(tenths % 10) + " s";
}

std::string describe(const Said& said) { return troupe::describe(said.collective, said.sequence, said.label); }

int known_as(const SharedState& state, int r) { return state.members()[static_cast<std::size_t>(r)]; }

/// What a rank that has not come did last.
std::string last_of(SharedState& state, int r) {
  const auto who = "rank " + std::to_string(known_as(state, r));
  const auto posted = state.rank(r).posted.load(std::memory_order_acquire);
  if (posted == 0) return who + " has called nothing yet";
  const auto said = state.said(r, posted);
  if (!said) return who + " is on its way";
  auto text = who + "'s last was " + describe(*said);
  if (state.rank(r).finished.load(std::memory_order_acquire) < posted) return text + ", which it has not seen the end of";
  const std::chrono::steady_clock::duration at{state.rank(r).finished_at.load(std::memory_order_relaxed)};
  return text + ", finished " + seconds_text(std::chrono::steady_clock::now().time_since_epoch() - at) + " ago";
}

/// Where the ranks stand that a rank waits for.
struct Attendance {
  std::vector<int> came, missing, gone, working;
};

Attendance attendance(SharedState& state, int rank, std::uint64_t sequence) {
  Attendance a;
  for (int r = 0; r < state.size(); ++r) {
    const bool left = state.rank(r).left.load(std::memory_order_acquire) != 0;  // read first: it may come, then leave
    const bool came = state.record(sequence, r).sequence.load(std::memory_order_acquire) >= sequence;
    (came ? a.came : left ? a.gone : a.missing).push_back(r);
    if (r != rank && state.rank(r).working.load(std::memory_order_relaxed) != 0) a.working.push_back(r);
  }
  return a;
}

std::string list_of(const SharedState& state, const std::vector<int>& ranks) {
  std::vector<int> names;
  for (const int r : ranks) names.push_back(known_as(state, r));
  return list_ranks(names);
}
std::string ranks_of(const SharedState& state, const std::vector<int>& ranks) {
  return (ranks.size() == 1 ? "rank " : "ranks ") + list_of(state, ranks);
}

/// Labels of two ranks' calls that may meet: one, or one of them gave none.
bool same_label(std::uint64_t a, std::uint64_t b) { return a == b || a == 0 || b == 0; }

/// What those who came are at, when they are not at the same; "" when they are.
std::string disagreement(SharedState& state, const std::vector<int>& came, std::uint64_t sequence) {
  std::vector<int> ranks;
  std::vector<std::string> calls;
  bool same = true;
  std::optional<Said> first;
  std::uint64_t label = 0;
  for (const int r : came) {
    const auto said = state.said(r, sequence);
    if (!said) continue;
    if (!first) first = said;
    same = same && said->collective == first->collective && same_label(said->label.hash, label);
    if (label == 0) label = said->label.hash;
    ranks.push_back(known_as(state, r));
    calls.push_back(describe(*said));
  }
  return same ? "" : parties(ranks, calls);
}

std::string last_of(SharedState& state, const std::vector<int>& ranks) {
  constexpr std::size_t most = 8;
  std::string text;
  for (std::size_t i = 0; i < std::min(ranks.size(), most); ++i) text += "; " + last_of(state, ranks[i]);
  return ranks.size() > most ? text + "; …" : text;
}

/// " in the group of ranks 0, 2", for groups that are not of all ranks.
std::string where(const SharedState& state) { return state.is_split() ? " in the group of ranks " + list_ranks(state.members()) : ""; }

}  // namespace

std::string parties(const std::vector<int>& ranks, const std::vector<std::string>& calls) {
  std::map<std::string, std::vector<int>> by_call;
  for (std::size_t i = 0; i < ranks.size(); ++i) by_call[calls[i]].push_back(ranks[i]);
  std::vector<std::pair<std::string, std::vector<int>>> sides{by_call.begin(), by_call.end()};
  std::sort(sides.begin(), sides.end(), [](const auto& a, const auto& b) {
    return std::pair{a.second.size(), a.second} < std::pair{b.second.size(), b.second};
  });
  std::string text;
  for (const auto& [call, side] : sides)
    text += (text.empty() ? "" : "; ") + ranks_text(side) + (side.size() == 1 ? " is at " : " are at ") + call;
  return text;
}

bool agree(SharedState& state, std::uint64_t sequence) {
  const auto word = [&](int r) {
    auto& record = state.record(sequence, r);
    return std::pair{record.what.load(std::memory_order_relaxed), record.bytes.load(std::memory_order_relaxed)};
  };
  const auto label_of = [&](int r) { return state.record(sequence, r).label_hash.load(std::memory_order_relaxed); };
  std::vector<int> all;
  bool same = true;
  const auto first = word(0);
  auto label = label_of(0);
  for (int r = 1; r < state.size() && same; ++r) {
    same = word(r) == first && same_label(label_of(r), label);
    if (label == 0) label = label_of(r);
  }
  if (same) return true;
  for (int r = 0; r < state.size(); ++r) all.push_back(r);
  state.fail(Errc::CollectiveMismatch, "ranks disagree" + where(state) + ": " + disagreement(state, all, sequence));
  return false;
}

void end_when_nobody_comes(SharedState& state, int rank, const Awaited& awaited) {
  const bool late = std::chrono::steady_clock::now() >= awaited.deadline;
  if (!late && state.header().num_left.load(std::memory_order_acquire) == 0) return;
  const auto a = attendance(state, rank, awaited.sequence);
  if (!late && a.gone.empty()) return;
  const auto mine = state.said(rank, awaited.sequence);
  const auto label = (mine ? describe(*mine) : "collective #" + std::to_string(awaited.sequence)) + where(state) + ": ";
  const auto within = " within " + duration_text(awaited.timeout);
  const auto waiting = " (waiting: " + list_of(state, a.came) + ")";
  if (!a.gone.empty()) return state.fail(Errc::Aborted, label + ranks_of(state, a.gone) + " left the group" + waiting + last_of(state, a.gone));
  const auto apart = disagreement(state, a.came, awaited.sequence);
  const auto absent = a.missing.empty() ? "" : ranks_of(state, a.missing) + " did not come" + within;
  if (!apart.empty())
    return state.fail(Errc::CollectiveMismatch, "ranks disagree" + where(state) + ": " + apart + "; " + absent + last_of(state, a.missing));
  if (a.missing.empty())
    return state.fail(Errc::DeadlinePassed, label + "all ranks came, but it was not finished" + within + " (still working: " +
                                                list_of(state, a.working) + ")");
  state.fail(Errc::DeadlinePassed, label + absent + waiting + last_of(state, a.missing));
}

}  // namespace troupe::detail
