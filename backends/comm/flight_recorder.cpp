#include <troupe/flight_recorder.hpp>

#include "local_access.hpp"
#include "packed.hpp"

#include <troupe/black_box.hpp>

#include <cstring>

namespace troupe {

namespace {

std::int64_t ticks(FlightRecorder::Time time) { return time.time_since_epoch().count(); }
FlightRecorder::Time time_of(std::int64_t ticks) { return FlightRecorder::Time{FlightRecorder::Time::duration{ticks}}; }

std::string json_string(std::string_view text) {
  std::string out = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') out += '\\';
    out += static_cast<unsigned char>(c) < 0x20 ? '?' : c;
  }
  return out + '"';
}

}  // namespace

std::string_view name(Call call) noexcept {
  constexpr std::string_view names[] = {"all_reduce", "reduce_scatter", "all_gather", "broadcast", "barrier", "reduce_to_owners"};
  return names[static_cast<std::size_t>(call)];
}

std::uint64_t sent_bytes(const Collective& collective, int size) noexcept {
  const auto ranks = static_cast<std::uint64_t>(size), others = ranks - 1;
  switch (collective.call) {
    case Call::AllReduce: return 2 * collective.bytes * others / ranks;
    case Call::ReduceScatter:
    case Call::ReduceToOwners:
    case Call::Broadcast: return collective.bytes * others / ranks;
    case Call::AllGather: return collective.bytes * others;
    case Call::Barrier: break;
  }
  return 0;
}

CollectiveLabel::CollectiveLabel(std::string_view text) noexcept {
  constexpr std::size_t most = sizeof words;
  if (text.size() > most) text.remove_prefix(text.size() - most);
  if (text.empty()) return;
  std::memcpy(words.data(), text.data(), text.size());
  for (const auto word : words) {
    hash = (hash ^ word) * 0x9e3779b97f4a7c15;
    hash ^= hash >> 32;
  }
  hash |= 1;
}

std::string CollectiveLabel::text() const {
  const auto* begin = reinterpret_cast<const char*>(words.data());
  return {begin, strnlen(begin, sizeof words)};
}

namespace detail {

namespace {
constexpr char kWhole = '\x01';
}

std::string whole_label(const std::string& text) {
  constexpr std::size_t most = sizeof(CollectiveLabel::words) - 1;
  return kWhole + (text.size() <= most ? text : text.substr(0, most - 3) + "…");
}

}  // namespace detail

std::string describe(const Collective& collective, std::uint64_t sequence, const CollectiveLabel& label) {
  constexpr std::string_view ops[] = {"sum", "mean", "max", "min"};
  if (const auto whole = label.text(); !whole.empty() && whole.front() == detail::kWhole) return whole.substr(1);
  std::string text = std::string{name(collective.call)} + " #" + std::to_string(sequence);
  if (const auto whose = label.text(); !whose.empty()) text += " of `" + whose + "`";
  if (collective.call == Call::Barrier) return text;
  text += " (";
  if (collective.call == Call::AllReduce || collective.call == Call::ReduceScatter || collective.call == Call::ReduceToOwners)
    text += std::string{ops[static_cast<std::size_t>(collective.op)]} + ", ";
  if (collective.call == Call::Broadcast) text += "from rank " + std::to_string(collective.root) + ", ";
  text += std::string{name(collective.dtype)} + " x " + std::to_string(collective.bytes / size_of(collective.dtype));
  if (collective.result != collective.dtype) text += " to " + std::string{name(collective.result)};
  if (collective.call == Call::ReduceToOwners) text += ", ranges " + std::to_string(static_cast<std::uint32_t>(collective.root));
  return text + ")";
}

FlightRecorder::FlightRecorder(std::string group, int rank, std::vector<int> ranks)
    : group_(std::move(group)), rank_(rank), ranks_(std::move(ranks)), ring_(new Entry[kCapacity]{}) {}

std::uint64_t FlightRecorder::post(const Collective& collective, Time now) noexcept {
  const auto sequence = ++sequence_;
  const auto place = sequence % kCapacity;
  auto& entry = ring_[place];
  entry.begun.store(sequence, std::memory_order_relaxed);
  // Each store after `begun` is a release, so who reads one of them also sees that the entry was begun anew.
  constexpr auto order = std::memory_order_release;
  entry.what.store(detail::pack(collective), order);
  entry.bytes.store(collective.bytes, order);
  entry.posted.store(ticks(now), order);
  entry.end.store(0, order);
  for (std::size_t i = 0; i < CollectiveLabel::kWords; ++i) entry.label[i].store(label_.words[i], order);
  entry.sequence.store(sequence, order);
  latest_.store(sequence, order);
  auto& counter = counters_[static_cast<std::size_t>(collective.call)];
  counter.calls.store(counter.calls.load(std::memory_order_relaxed) + 1, std::memory_order_relaxed);
  counter.bytes.store(counter.bytes.load(std::memory_order_relaxed) + sent_bytes(collective, static_cast<int>(ranks_.size())), std::memory_order_relaxed);
  if (auto* box = current_black_box()) {
    box->advance();
    box->collectives.store(box->collectives.load(std::memory_order_relaxed) + 1, std::memory_order_relaxed);
    const auto* label = reinterpret_cast<const char*>(label_.words.data());
    box->note(EventKind::Collective, sequence, name(collective.call), {label, strnlen(label, sizeof label_.words)}, now);
  }
  return sequence;
}

void FlightRecorder::finish(std::uint64_t sequence, Errc outcome, Time now) noexcept {
  const auto place = sequence % kCapacity;
  auto& entry = ring_[place];
  if (entry.sequence.load(std::memory_order_relaxed) != sequence) return;  // it took longer than the next 2,000
  outcomes_[place].store(static_cast<std::uint16_t>(outcome), std::memory_order_relaxed);
  entry.end.store(ticks(now), std::memory_order_release);
  if (outcome == Errc::Ok) return;
  if (auto* box = current_black_box()) box->note(EventKind::CollectiveEnded, sequence, troupe::name(outcome), {}, now);
}

bool FlightRecorder::read(std::uint64_t sequence, FlightEntry& out) const {
  constexpr auto order = std::memory_order_acquire;
  const auto place = sequence % kCapacity;
  const auto& entry = ring_[place];
  if (entry.sequence.load(order) != sequence) return false;
  out.sequence = sequence;
  out.collective = detail::unpack(entry.what.load(order), entry.bytes.load(order));
  out.posted = time_of(entry.posted.load(order));
  const auto end = entry.end.load(order);
  out.under_way = end == 0;
  out.finished = time_of(end);
  out.outcome = end == 0 ? Errc::Ok : static_cast<Errc>(outcomes_[place].load(order));
  CollectiveLabel label;
  for (std::size_t i = 0; i < CollectiveLabel::kWords; ++i) label.words[i] = entry.label[i].load(order);
  out.label = label.text();
  return entry.begun.load(std::memory_order_relaxed) == sequence;
}

std::vector<FlightEntry> FlightRecorder::entries() const {
  const auto latest = latest_.load(std::memory_order_acquire);
  std::vector<FlightEntry> all;
  for (auto s = latest >= kCapacity ? latest - kCapacity + 1 : 1; s <= latest; ++s) {
    FlightEntry entry;
    if (read(s, entry)) all.push_back(std::move(entry));
  }
  return all;
}

std::string FlightRecorder::dump() const {
  std::string ranks;
  for (const auto r : ranks_) ranks += (ranks.empty() ? "" : ",") + std::to_string(r);
  const auto begin = "{\"group\":" + json_string(group_) + ",\"ranks\":[" + ranks +
                     "],\"rank\":" + std::to_string(ranks_.at(static_cast<std::size_t>(rank_)));
  using Seconds = std::chrono::duration<double>;
  const auto system = std::chrono::system_clock::now().time_since_epoch() - std::chrono::steady_clock::now().time_since_epoch();
  const auto seconds = [&](Time time) { return std::to_string(Seconds{time.time_since_epoch() + system}.count()); };
  std::string text;
  for (const auto& entry : entries()) {
    const auto& c = entry.collective;
    text += begin + ",\"sequence\":" + std::to_string(entry.sequence) + ",\"call\":" + json_string(name(c.call)) +
            ",\"label\":" + json_string(entry.label) + ",\"op\":" + std::to_string(static_cast<int>(c.op)) +
            ",\"dtype\":" + json_string(name(c.dtype)) + ",\"count\":" + std::to_string(c.bytes / size_of(c.dtype)) +
            ",\"bytes\":" + std::to_string(c.bytes) + ",\"root\":" + std::to_string(c.root) + ",\"posted\":" + seconds(entry.posted);
    text += entry.under_way ? ",\"finished\":null,\"outcome\":null}\n"
                            : ",\"finished\":" + seconds(entry.finished) + ",\"outcome\":" + json_string(name(entry.outcome)) + "}\n";
  }
  return text;
}

Traffic FlightRecorder::traffic(Call call) const noexcept {
  const auto& counter = counters_[static_cast<std::size_t>(call)];
  return {counter.calls.load(std::memory_order_relaxed), counter.bytes.load(std::memory_order_relaxed)};
}

Traffic FlightRecorder::traffic() const noexcept {
  Traffic sum;
  for (std::size_t c = 0; c < kNumCalls; ++c) {
    const auto one = traffic(static_cast<Call>(c));
    sum.calls += one.calls;
    sum.sent_bytes += one.sent_bytes;
  }
  return sum;
}

}  // namespace troupe
