#include "host_exchange.hpp"

#include "blame.hpp"
#include "packed.hpp"

#include <poll.h>

#include <algorithm>
#include <thread>

namespace troupe::detail {

namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

/// Past the deadline a peer's host may know better who is missing: its word is waited for this long.
constexpr milliseconds kGrace{100};

template <class Byte>
std::span<Byte> piece_at(const std::vector<std::span<Byte>>& pieces, std::size_t at) {
  for (const auto& piece : pieces) {
    if (at < piece.size()) return piece.subspan(at);
    at -= piece.size();
  }
  return {};
}

template <class Byte>
std::size_t bytes_of(const std::vector<std::span<Byte>>& pieces) {
  std::size_t sum = 0;
  for (const auto& piece : pieces) sum += piece.size();
  return sum;
}

std::string seconds_text(Clock::duration time) {
  const auto tenths = std::chrono::duration_cast<milliseconds>(time).count() / 100;
  return std::to_string(tenths / 10) + "." + std::to_string(tenths % 10) + " s";
}

std::string duration_text(milliseconds time) {
  return time.count() % 1000 == 0 ? std::to_string(time.count() / 1000) + " s" : std::to_string(time.count()) + " ms";
}

std::string ranks_text(const std::vector<int>& names) { return (names.size() == 1 ? "rank " : "ranks ") + list_ranks(names); }

std::vector<int> names_on(const HostTopology& t, int host) {
  return {t.members.begin() + t.begin(host), t.members.begin() + t.begin(host + 1)};
}

}  // namespace

std::string group_text(const HostCore& core) {
  return core.plan().group.empty() ? "" : " in the group of ranks " + list_ranks(core.topology().members);
}

bool CallHeader::agrees(const CallHeader& other) const noexcept {
  const bool labels = label.hash == other.label.hash || label.hash == 0 || other.label.hash == 0;
  return sequence == other.sequence && what == other.what && bytes == other.bytes && labels;
}

std::string CallHeader::text() const { return describe(unpack(what, bytes), sequence, label); }

void Exchange::run(std::vector<Transfer>& transfers, const std::function<bool()>& progress) {
  std::vector<Side> sides;
  for (auto& transfer : transfers) {
    auto& side = sides.emplace_back(Side{.transfer = &transfer});
    side.theirs.resize(static_cast<std::size_t>(core_.topology().ranks_of(transfer.link->host)));
    side.out_bytes = bytes_of(transfer.out);
    side.in_bytes = bytes_of(transfer.in);
  }
  auto until = call_.started + call_.timeout;
  bool compared = false;
  for (;;) {
    bool moved = false;
    for (auto& side : sides) moved = send(side) || moved;
    for (auto& side : sides) moved = receive(side) || moved;
    if (core_.broken()) core_.failure().or_throw();
    if (!compared && std::all_of(sides.begin(), sides.end(), [](const auto& side) { return side.introduced(); })) {
      compare(sides);
      compared = true;
    }
    if (compared && progress) moved = progress() || moved;
    if (compared && std::all_of(sides.begin(), sides.end(), [&](const auto& side) { return done(side); })) return;
    if (moved) {
      if (compared) until = Clock::now() + call_.timeout;
      continue;
    }
    for (const auto& side : sides)
      if (side.transfer->link->data().closed() && !(compared && done(side))) gone(side);
    if (Clock::now() >= until) nobody_came(sides);
    wait(sides, until);
  }
}

bool Exchange::send(Side& side) const {
  auto& stream = side.transfer->link->data();
  const auto headers = std::as_bytes(std::span{mine_});
  if (side.headers_sent < headers.size()) {
    const auto some = stream.write(headers.subspan(side.headers_sent));
    side.headers_sent += some;
    return some != 0;
  }
  auto& transfer = *side.transfer;
  const auto end = std::min(side.out_bytes, transfer.allowed);
  if (transfer.sent >= end) {
    (void)stream.flush();
    return false;
  }
  const auto piece = piece_at(transfer.out, transfer.sent);
  const auto some = stream.write(piece.first(std::min(piece.size(), end - transfer.sent)));
  transfer.sent += some;
  return some != 0;
}

bool Exchange::receive(Side& side) const {
  constexpr std::size_t kAtOnce = std::size_t{256} << 10;  // then it is the turn of others, and of what came to be added
  auto& stream = side.transfer->link->data();
  if (!side.introduced()) {
    const auto some = stream.read(std::as_writable_bytes(std::span{side.theirs}).subspan(side.headers_received));
    side.headers_received += some;
    return some != 0;
  }
  auto& transfer = *side.transfer;
  const auto end = std::min(side.in_bytes, transfer.room);
  if (transfer.received >= end) return false;
  const auto piece = piece_at(transfer.in, transfer.received);
  const auto some = stream.read(piece.first(std::min({piece.size(), kAtOnce, end - transfer.received})));
  transfer.received += some;
  return some != 0;
}

bool Exchange::done(const Side& side) const {
  return side.headers_sent == mine_.size() * sizeof(CallHeader) && side.transfer->sent == side.out_bytes &&
         side.transfer->received == side.in_bytes && !side.transfer->link->data().waits_to_send();
}

void Exchange::compare(const std::vector<Side>& sides) const {
  const auto& t = core_.topology();
  std::vector<CallHeader> all(static_cast<std::size_t>(t.size()), call_.header);  // of hosts that it does not talk to: like mine
  std::copy(mine_.begin(), mine_.end(), all.begin() + t.begin(t.host));
  for (const auto& side : sides) std::copy(side.theirs.begin(), side.theirs.end(), all.begin() + t.begin(side.transfer->link->host));
  const auto* named = &call_.header;  // a call with a label, if there is one: those without go with any
  for (const auto& one : all)
    if (one.label.hash != 0) named = &one;
  if (std::all_of(all.begin(), all.end(), [&](const auto& one) { return one.agrees(*named); })) return;
  std::vector<std::string> calls;
  for (const auto& one : all) calls.push_back(one.text());
  throw Failure{Errc::CollectiveMismatch, "ranks disagree" + group_text(core_) + ": " + parties(t.members, calls)};
}

void Exchange::wait(const std::vector<Side>& sides, Clock::time_point until) const {
  std::vector<pollfd> fds;
  for (const auto& side : sides)
    if (!done(side) || !side.introduced()) fds.push_back({side.transfer->link->data().fd(), side.transfer->link->data().wanted(), 0});
  const auto time = std::chrono::ceil<milliseconds>(until - Clock::now()).count();
  (void)poll(fds.data(), fds.size(), static_cast<int>(std::clamp<std::int64_t>(time, 0, 1000)));
}

void Exchange::give_others_a_word(milliseconds patience) const {
  for (const auto end = Clock::now() + patience; Clock::now() < end && !core_.broken();) std::this_thread::sleep_for(milliseconds{1});
  if (core_.broken()) core_.failure().or_throw();
}

std::string Exchange::last_of(const std::vector<int>& names) const {
  constexpr std::size_t most = 8;
  std::string text;
  for (std::size_t i = 0; i < std::min(names.size(), most); ++i) {
    text += "; rank " + std::to_string(names[i]);
    text += call_.previous.empty() ? " has called nothing yet"
                                   : "'s last was " + call_.previous + ", finished " + seconds_text(Clock::now() - call_.previous_end) + " ago";
  }
  return names.size() > most ? text + "; …" : text;
}

std::string Exchange::where() const { return call_.text + group_text(core_) + ": "; }

void Exchange::nobody_came(const std::vector<Side>& sides) const {
  give_others_a_word(std::min(kGrace, std::max(call_.timeout / 2, milliseconds{20})));
  const auto& t = core_.topology();
  const auto within = duration_text(call_.timeout);
  const auto waiting = " (waiting: " + list_ranks(t.names_here()) + ")";
  std::vector<int> absent, silent;
  bool whole = true;  // all ranks of the hosts that are missing are missing for sure
  for (const auto& side : sides) {
    const auto names = names_on(t, side.transfer->link->host);
    if (!side.introduced()) {
      absent.insert(absent.end(), names.begin(), names.end());
      whole = whole && names.size() == 1;
    } else if (!done(side)) {
      silent.push_back(t.name_of(side.transfer->link->rank));
    }
  }
  if (absent.empty())
    throw Failure{Errc::DeadlinePassed, where() + "all ranks came, but " + ranks_text(silent) + " moved no byte for " + within + waiting};
  throw Failure{Errc::DeadlinePassed, where() + (whole ? "" : "not all of ") + ranks_text(absent) + (whole ? " did not come within " : " came within ") +
                                          within + waiting + last_of(absent)};
}

void Exchange::gone(const Side& side) const {
  give_others_a_word(kGrace);  // it may have said why
  const std::vector<int> name{core_.topology().name_of(side.transfer->link->rank)};
  throw Failure{Errc::Aborted, where() + ranks_text(name) + " left the group (waiting: " + list_ranks(core_.topology().names_here()) + ")" + last_of(name)};
}

}  // namespace troupe::detail
