#include "host_collectives.hpp"

#include "blame.hpp"
#include "host_sums.hpp"
#include "local_access.hpp"
#include "packed.hpp"

#include <algorithm>
#include <bit>
#include <cstring>
#include <functional>

namespace troupe::detail {

namespace {

using Clock = std::chrono::steady_clock;

/// Up to here the bytes of a slice are not worth more than one lane, or a second turn over the network.
constexpr std::size_t kOneLaneBytes = std::size_t{32} << 10;
constexpr std::size_t kDirectBytes = std::size_t{64} << 10;
/// How much longer than for a rank to come the later steps inside a host wait: for one that waits for the network.
constexpr std::chrono::milliseconds kLaterSteps{1500};

/// What a rank gives to a collective.
ConstBuffer given(const Request& request) noexcept {
  return request.call == Call::Broadcast ? ConstBuffer{request.output} : request.call == Call::Barrier ? ConstBuffer{} : request.input;
}

/// The first place of a host of `ranks` whose part of a reduction to owners lane `lane` takes care of.
int first_place(int lane, int lanes, int ranks) { return (lane * ranks + lanes - 1) / lanes; }

}  // namespace

HostCollectives::HostCollectives(HostCore& core) : core_(core) {
  const auto here = static_cast<std::size_t>(t().ranks_of(t().host));
  cards_memory_ = core.local().allocate(sizeof(Card) * (here + 1));
  cards_ = static_cast<Card*>(cards_memory_.get());
  headers_.resize(here);
}

std::byte* HostCollectives::scratch(std::size_t i, std::size_t bytes) {
  if (blocks_.size() <= i) blocks_.resize(i + 1);
  auto& block = blocks_[i];
  if (block.bytes < bytes) {
    block = {};
    const auto size = std::bit_ceil(std::max<std::size_t>(bytes, 4096));
    try {
      block.memory = local().allocate(size);
    } catch (const Failure&) {
      block.memory = allocate_from_heap(size);  // the ranks' memory is full: slower, through copies
    }
    block.bytes = size;
  }
  return static_cast<std::byte*>(block.memory.get());
}

void HostCollectives::run(const Request& request, std::uint64_t sequence, const CollectiveLabel& label, std::chrono::milliseconds timeout) {
  const auto collective = request.collective();
  call_.header = {sequence, pack(collective), collective.bytes, label};
  call_.text = call_.header.text();
  call_.timeout = timeout;
  call_.started = Clock::now();
  local().recorder().set_label(whole_label(call_.text), /*compared=*/false);
  show_cards(request);
  finish(request);
  call_.previous = call_.text;
  call_.previous_end = Clock::now();
}

void HostCollectives::finish(const Request& request) {
  if (const auto bytes = given(request).bytes; bytes <= kInline) return exchange_inline(request, bytes);
  switch (request.call) {
    case Call::AllReduce: return all_reduce(request);
    case Call::ReduceToOwners: return reduce_to_owners(request, request.begins);
    case Call::ReduceScatter: {
      std::vector<std::size_t> begins;
      for (int r = 0; r <= t().size(); ++r) begins.push_back(request.output.count() * static_cast<std::size_t>(r));
      return reduce_to_owners(request, begins);
    }
    case Call::AllGather: return all_gather(request);
    case Call::Broadcast: return broadcast(request);
    case Call::Barrier: break;
  }
}

void HostCollectives::local_patience(bool first) { local().set_timeout(first ? call_.timeout : call_.timeout + kLaterSteps); }

void HostCollectives::await(Work work) { work.wait().or_throw(); }

void HostCollectives::await(std::vector<Work>& works) {
  Outcome failed;
  for (auto& work : works)
    if (auto outcome = work.wait(); !outcome.ok() && failed.ok()) failed = std::move(outcome);
  works.clear();
  failed.or_throw();
}

void HostCollectives::move(std::vector<Transfer>& transfers, const std::function<bool()>& progress) {
  Exchange{core_, call_, headers_}.run(transfers, progress);
}

void HostCollectives::show_cards(const Request& request) {
  const auto here = headers_.size();
  auto& mine = cards_[here];
  mine.header = call_.header;
  const auto buffer = given(request);
  const bool gives = request.call != Call::Broadcast || request.root == t().rank;
  if (buffer.bytes != 0 && buffer.bytes <= kInline && gives) std::memcpy(mine.payload, buffer.data, buffer.bytes);
  local_patience(true);
  await(local().all_gather(ConstBuffer{&mine, sizeof mine, DType::U8}, Buffer{cards_, here * sizeof(Card), DType::U8}));
  local_patience(false);
  for (std::size_t i = 0; i < here; ++i) headers_[i] = cards_[i].header;
  const auto* named = &call_.header;  // a call with a label, if there is one: those without go with any
  for (const auto& one : headers_)
    if (one.label.hash != 0) named = &one;
  if (std::all_of(headers_.begin(), headers_.end(), [&](const auto& one) { return one.agrees(*named); })) return;
  std::vector<std::string> calls;
  for (const auto& one : headers_) calls.push_back(one.text());
  throw Failure{Errc::CollectiveMismatch, "ranks disagree" + group_text(core_) + ": " + parties(t().names_here(), calls)};
}

void HostCollectives::exchange_inline(const Request& request, std::size_t bytes) {
  const auto all = bytes * static_cast<std::size_t>(t().size());
  auto* const everyone = scratch(0, all);
  const auto part = [&](int host) { return std::span{everyone + bytes * static_cast<std::size_t>(t().begin(host)), bytes * static_cast<std::size_t>(t().ranks_of(host))}; };
  if (t().place() == 0) {
    const auto mine = part(t().host);
    for (std::size_t i = 0; i < headers_.size() && bytes != 0; ++i) std::memcpy(mine.data() + i * bytes, cards_[i].payload, bytes);
    std::vector<Transfer> transfers;
    for (auto& link : core_.links()) transfers.push_back({.link = &link, .out = {mine}, .in = {part(link.host)}});
    move(transfers);
  }
  await(local().broadcast({everyone, all, DType::U8}, 0));
  if (bytes != 0) combine_inline(request, bytes);
}

void HostCollectives::combine_inline(const Request& request, std::size_t bytes) {
  auto* const everyone = scratch(0, 0);
  if (request.call == Call::AllGather) {
    std::memcpy(request.output.data, everyone, request.output.bytes);
    return;
  }
  if (request.call == Call::Broadcast) {
    std::memcpy(request.output.data, everyone + bytes * static_cast<std::size_t>(request.root), bytes);
    return;
  }
  const auto dtype = request.dtype(), wide = between(dtype, request.op);
  const auto rank = static_cast<std::size_t>(t().rank), count = request.output.count();
  const auto begin = request.call == Call::AllReduce ? 0 : request.call == Call::ReduceScatter ? rank * count : request.begins[rank];
  const auto partial_bytes = count * size_of(wide);
  auto* const partials = scratch(1, partial_bytes * static_cast<std::size_t>(t().hosts()));
  std::vector<std::byte*> sources, sums;
  for (int h = 0; h < t().hosts(); ++h) {
    sources.clear();
    for (int r = t().begin(h); r < t().begin(h + 1); ++r) sources.push_back(everyone + bytes * static_cast<std::size_t>(r) + begin * size_of(dtype));
    sums.push_back(partials + partial_bytes * static_cast<std::size_t>(h));
    reduce({dtype, wide, inside(request.op)}, sources, {&sums.back(), 1}, count);
  }
  auto* target = bytes_at(request.output.data, 0);
  reduce({wide, request.output.dtype, request.op, static_cast<std::size_t>(t().size())}, sums, {&target, 1}, count);
}

void HostCollectives::spread(Buffer whole, int lanes) {
  std::vector<Work> works;
  spread(whole, lanes, works);
  await(works);
}

void HostCollectives::spread(Buffer whole, int lanes, std::vector<Work>& works) {
  const auto element = size_of(whole.dtype);
  for (int l = 0; l < lanes; ++l) {
    const auto begin = cut(whole.count(), l, lanes, element), end = cut(whole.count(), l + 1, lanes, element);
    if (end > begin) works.push_back(local().broadcast({bytes_at(whole.data, begin * element), (end - begin) * element, whole.dtype}, l));
  }
}

void HostCollectives::all_reduce(const Request& request) {
  const auto& buffer = request.output;
  const auto dtype = buffer.dtype, wide = between(dtype, request.op);
  const auto element = size_of(dtype), count = buffer.count();
  const int lanes = buffer.bytes <= kOneLaneBytes ? 1 : t().lanes;
  if (t().hosts() == 2 && lanes <= kMostLanesOfSegments && buffer.bytes >= kSegmentBytes)
    return all_reduce_in_segments(request);
  std::vector<std::size_t> begins;
  for (std::size_t place = 0; place <= headers_.size(); ++place) begins.push_back(cut(count, static_cast<int>(place), lanes, element));
  const auto place = static_cast<std::size_t>(t().place());
  const auto begin = begins[place], slice = begins[place + 1] - begin;
  auto* const target = bytes_at(buffer.data, begin * element);
  auto* const partial = wide == dtype ? target : scratch(0, slice * size_of(wide));
  await(local().reduce_to_owners(buffer, begins, {partial, slice * size_of(wide), wide}, inside(request.op)));
  if (t().place() < lanes) exchange_slice(partial, wide, target, dtype, request.op, slice);
  spread(buffer, lanes);
}

void HostCollectives::exchange_slice(std::byte* partial, DType from, std::byte* target, DType to, ReduceOp op, std::size_t count) {
  if (t().hosts() == 2 || count * size_of(from) <= kDirectBytes) exchange_directly(partial, from, target, to, op, count);
  else exchange_by_owners(partial, from, target, to, op, count);
}

void HostCollectives::exchange_directly(std::byte* partial, DType from, std::byte* target, DType to, ReduceOp op, std::size_t count) {
  const auto element = size_of(from), bytes = count * element;
  Adder adder{{from, to, op, static_cast<std::size_t>(t().size())}, static_cast<std::size_t>(t().hosts())};
  adder.source(t().host, partial);
  std::vector<Transfer> transfers;
  for (std::size_t i = 0; i < core_.links().size(); ++i) {
    auto& link = core_.links()[i];
    auto* const theirs = scratch(2 + i, bytes);
    adder.source(link.host, theirs);
    transfers.push_back({.link = &link, .out = {{partial, bytes}}, .in = {{theirs, bytes}}});
  }
  move(transfers, [&] {
    auto ready = bytes;  // come, and gone: the sum may overwrite what was sent
    for (const auto& one : transfers) ready = std::min({ready, one.received, one.sent});
    return adder.advance(target, ready / element, count);
  });
}

void HostCollectives::exchange_by_owners(std::byte* partial, DType from, std::byte* target, DType to, ReduceOp op, std::size_t count) {
  const auto element = size_of(from);
  const auto begin = [&](int host) { return cut(count, host, t().hosts(), element); };
  const auto partials = [&](int host) { return std::span{partial + begin(host) * element, (begin(host + 1) - begin(host)) * element}; };
  const auto sums = [&](int host) { return std::span{target + begin(host) * size_of(to), (begin(host + 1) - begin(host)) * size_of(to)}; };
  const auto mine = partials(t().host);
  Adder adder{{from, to, op, static_cast<std::size_t>(t().size())}, static_cast<std::size_t>(t().hosts())};
  adder.source(t().host, mine.data());
  std::vector<Transfer> transfers;
  for (std::size_t i = 0; i < core_.links().size(); ++i) {
    auto& link = core_.links()[i];
    auto* const theirs = scratch(2 + i, mine.size());
    adder.source(link.host, theirs);
    transfers.push_back({.link = &link, .out = {partials(link.host), sums(t().host)}, .in = {{theirs, mine.size()}, sums(link.host)}});
    transfers.back().allowed = partials(link.host).size();
  }
  // In place: a peer sends the sum of a piece only after it has this rank's part of it, so nothing is overwritten too early.
  move(transfers, [&] {
    auto ready = mine.size();
    for (const auto& one : transfers) ready = std::min(ready, one.received);
    if (!adder.advance(sums(t().host).data(), ready / element, mine.size() / element)) return false;
    for (auto& one : transfers) one.allowed = one.out.front().size() + adder.done() * size_of(to);
    return true;
  });
}

void HostCollectives::reduce_to_owners(const Request& request, std::span<const std::size_t> begins) {
  const auto dtype = request.dtype(), wide = between(dtype, request.op);
  const auto element = size_of(wide);
  const auto bound = [&](int host, int lane) {  // element where the part of `lane` on `host` begins
    return begins[static_cast<std::size_t>(t().begin(host) + first_place(lane, t().lanes, t().ranks_of(host)))];
  };
  const auto room = [&](std::size_t elements) { return (elements * element + 63) / 64 * 64; };
  const int place = t().place();
  const auto slice = [&](int host) { return t().in_lane() ? bound(host, place + 1) - bound(host, place) : 0; };
  std::size_t offset = 0;
  std::vector<std::size_t> offsets;
  for (int h = 0; h < t().hosts(); ++h) {
    offsets.push_back(offset);
    offset += room(slice(h));
  }
  auto* const partials = scratch(0, offset);
  const auto partial = [&](int host) { return std::span{partials + offsets[static_cast<std::size_t>(host)], slice(host) * element}; };

  std::vector<std::vector<std::size_t>> local_begins(static_cast<std::size_t>(t().hosts()));
  std::vector<Work> works;
  for (int h = 0; h < t().hosts(); ++h) {
    const auto from = bound(h, 0), to = bound(h, t().lanes);
    if (to == from) continue;
    auto& bounds = local_begins[static_cast<std::size_t>(h)];
    for (int p = 0; p <= static_cast<int>(headers_.size()); ++p) bounds.push_back(bound(h, std::min(p, t().lanes)) - from);
    works.push_back(local().reduce_to_owners({bytes_at(request.input.data, from * size_of(dtype)), (to - from) * size_of(dtype), dtype}, bounds,
                                             {partial(h).data(), partial(h).size(), wide}, inside(request.op)));
  }
  await(works);

  const auto count = slice(t().host);
  const bool alone = t().in_lane() && first_place(place, t().lanes, t().ranks_of(t().host)) == place &&
                     first_place(place + 1, t().lanes, t().ranks_of(t().host)) == place + 1;
  auto* const sum = alone ? bytes_at(request.output.data, 0) : scratch(1, count * size_of(request.output.dtype));
  if (t().in_lane()) {
    Adder adder{{wide, request.output.dtype, request.op, static_cast<std::size_t>(t().size())}, static_cast<std::size_t>(t().hosts())};
    adder.source(t().host, partial(t().host).data());
    std::vector<Transfer> transfers;
    for (std::size_t i = 0; i < core_.links().size(); ++i) {
      auto& link = core_.links()[i];
      auto* const theirs = scratch(2 + i, count * element);
      adder.source(link.host, theirs);
      transfers.push_back({.link = &link, .out = {partial(link.host)}, .in = {{theirs, count * element}}});
    }
    move(transfers, [&] {
      auto ready = count * element;
      for (const auto& one : transfers) ready = std::min(ready, one.received);
      return adder.advance(sum, ready / element, count);
    });
  }
  if (t().ranks_of(t().host) != t().lanes) hand_to_owners(request, begins, sum);
}

void HostCollectives::hand_to_owners(const Request& request, std::span<const std::size_t> begins, std::byte* sum) {
  const auto element = size_of(request.output.dtype);
  const int here = t().ranks_of(t().host), first = t().begin(t().host);
  const auto begin = [&](int place) { return begins[static_cast<std::size_t>(first + place)]; };
  std::vector<Work> works;
  for (int lane = 0; lane < t().lanes; ++lane) {
    const int from = first_place(lane, t().lanes, here), to = first_place(lane + 1, t().lanes, here);
    for (int owner = from; owner < to; ++owner) {
      const auto bytes = (begin(owner + 1) - begin(owner)) * element;
      if (bytes == 0) continue;
      auto* const source = lane == t().place() ? sum + (begin(owner) - begin(from)) * element : nullptr;
      const bool mine = owner == t().place();
      if (owner == lane) {
        if (mine) std::memcpy(request.output.data, source, bytes);
        continue;
      }
      // Everybody takes part in a broadcast; those whom it does not concern throw it away, one after the other.
      auto* const data = source ? source : mine ? bytes_at(request.output.data, 0) : scratch(2 + static_cast<std::size_t>(t().hosts()), bytes);
      await(local().broadcast({data, bytes, request.output.dtype}, lane));
    }
  }
}

void HostCollectives::all_gather(const Request& request) {
  const auto n = request.input.bytes;
  const auto block = [&](int host) { return std::span{bytes_at(request.output.data, n * static_cast<std::size_t>(t().begin(host))), n * static_cast<std::size_t>(t().ranks_of(host))}; };
  const int lanes = n * static_cast<std::size_t>(t().size()) <= kOneLaneBytes ? 1 : t().lanes;
  const auto slice = [&](int host) {
    const auto whole = block(host);
    const auto begin = cut(whole.size(), t().place(), lanes, 1), end = cut(whole.size(), t().place() + 1, lanes, 1);
    return whole.subspan(begin, end - begin);
  };
  await(local().all_gather(request.input, Buffer{block(t().host).data(), block(t().host).size(), request.output.dtype}));
  if (t().place() < lanes) {
    std::vector<Transfer> transfers;
    for (auto& link : core_.links()) transfers.push_back({.link = &link, .out = {slice(t().host)}, .in = {slice(link.host)}});
    move(transfers);
  }
  for (int h = 0; h < t().hosts(); ++h)
    if (h != t().host) spread({block(h).data(), block(h).size(), DType::U8}, lanes);
}

void HostCollectives::broadcast(const Request& request) {
  const auto& buffer = request.output;
  const int source = t().host_of(request.root), lanes = buffer.bytes <= kOneLaneBytes ? 1 : t().lanes;
  const Buffer whole{buffer.data, buffer.bytes, DType::U8};
  if (t().host == source) await(local().broadcast(whole, request.root - t().begin(source)));
  if (t().place() < lanes) {
    const auto begin = cut(whole.bytes, t().place(), lanes, 1), end = cut(whole.bytes, t().place() + 1, lanes, 1);
    const std::span slice{bytes_at(buffer.data, begin), end - begin};
    std::vector<Transfer> transfers;
    for (auto& link : core_.links()) {
      auto& transfer = transfers.emplace_back(Transfer{.link = &link});
      if (t().host == source) transfer.out = {slice};
      else if (link.host == source) transfer.in = {slice};
    }
    move(transfers);
  }
  if (t().host != source) spread(whole, lanes);
}

}  // namespace troupe::detail
