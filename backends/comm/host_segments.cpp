// A large all_reduce between two hosts, in segments: while one is on the wire, the next is reduced inside the host and the one before
// is spread, each while it is in a cache.
#include "host_collectives.hpp"
#include "host_sums.hpp"

#include <algorithm>
#include <optional>

namespace troupe::detail {

namespace {

/// Segments whose sums are under way at once, and what is kept of them.
constexpr std::size_t kAhead = 2, kRing = 4;

struct Segment {
  Buffer whole{};                     ///< of all lanes
  std::vector<std::size_t> begins{};  ///< of the lanes in it, by place
  std::size_t count = 0;              ///< elements of this rank's lane
  std::size_t end = 0;                ///< bytes of the lane's partial sums up to its end
  std::byte *target = nullptr, *partial = nullptr, *theirs = nullptr;
  Work reduced{};
};

}  // namespace

/// On every rank of a host the calls inside it are: reduce 0, reduce 1, spread 0, reduce 2, spread 1, …
class HostCollectives::Segments {
 public:
  Segments(HostCollectives& all, const Request& request)
      : all_(all), op_(request.op), to_(request.output.dtype), from_(between(to_, op_)) {
    lay_out(request.output);
  }
  Segments(const Segments&) = delete;
  Segments& operator=(const Segments&) = delete;

  void run() {
    try {
      while (posted_ < std::min(kAhead, segments_.size())) post();
      if (all_.t().in_lane()) exchange();
      while (done_ < segments_.size()) {  // a rank without a lane
        take(/*wait=*/true);
        spread();
      }
      all_.await(spreads_);
    } catch (const Failure& failure) {
      all_.core_.fail(failure.code(), failure.what());  // first: what is under way inside the host ends only then
      throw;
    }
  }

 private:
  void lay_out(Buffer buffer) {
    const auto& t = all_.t();
    const auto element = size_of(from_), piece = kSegmentBytes / element, room = (piece + 64) * element;
    const auto step = piece * static_cast<std::size_t>(t.lanes), place = static_cast<std::size_t>(t.place());
    const bool wide = from_ != to_;
    auto* const partials = wide && t.in_lane() ? all_.scratch(0, kRing * room) : nullptr;
    auto* const theirs = t.in_lane() ? all_.scratch(2, kRing * room) : nullptr;
    std::size_t end = 0;
    for (std::size_t at = 0; at < buffer.count(); at += step) {
      const auto ring = segments_.size() % kRing * room;
      auto& one = segments_.emplace_back();
      const auto count = std::min(step, buffer.count() - at);
      one.whole = {bytes_at(buffer.data, at * size_of(to_)), count * size_of(to_), to_};
      for (std::size_t p = 0; p <= all_.headers_.size(); ++p) one.begins.push_back(cut(count, static_cast<int>(p), t.lanes, size_of(to_)));
      one.count = one.begins[place + 1] - one.begins[place];
      one.target = bytes_at(one.whole.data, one.begins[place] * size_of(to_));
      one.partial = wide && t.in_lane() ? partials + ring : one.target;
      one.theirs = t.in_lane() ? theirs + ring : nullptr;
      one.end = end += one.count * element;
    }
  }

  void post() {
    auto& one = segments_[posted_++];
    one.reduced = all_.local().reduce_to_owners(one.whole, one.begins, {one.partial, one.count * size_of(from_), from_}, inside(op_));
  }

  /// Sees which segments are reduced inside the host; waits for one when told to.
  bool take(bool wait) {
    const auto before = reduced_;
    while (reduced_ < posted_ && (wait || segments_[reduced_].reduced.poll())) {
      segments_[reduced_++].reduced.wait().or_throw();
      wait = false;
    }
    return reduced_ != before;
  }

  void spread() {
    auto& one = segments_[done_++];
    all_.spread(one.whole, all_.t().lanes, spreads_);
    if (posted_ < segments_.size()) post();
  }

  void exchange() {
    auto& link = all_.core_.links().front();
    std::vector<Transfer> transfers{{.link = &link}};
    auto& transfer = transfers.front();
    for (const auto& one : segments_) {
      const auto bytes = one.count * size_of(from_);
      transfer.out.push_back({one.partial, bytes});
      transfer.in.push_back({one.theirs, bytes});
    }
    limit(transfer);
    limit(transfer);
    all_.move(transfers, [&] { return advance(transfer); });
    while (done_ < segments_.size()) (void)advance(transfer);  // of no bytes
  }

  void limit(Transfer& transfer) const {
    transfer.allowed = reduced_ == 0 ? 0 : segments_[reduced_ - 1].end;
    transfer.room = segments_[std::min(done_ + kRing, segments_.size()) - 1].end;
  }

  bool advance(Transfer& transfer) {
    bool moved = take(false);
    // Nothing is left to do for the wire: now the ranks of the host may take their time. What they need of it has been sent.
    if (!moved && reduced_ < posted_ && transfer.idle()) moved = take(true);
    while (done_ < reduced_) {
      auto& one = segments_[done_];
      const auto begin = one.end - one.count * size_of(from_);
      const auto ready = std::min({transfer.sent, transfer.received, one.end});  // gone and come: the sum overwrites it
      if (!adder_) {
        adder_.emplace(Reduction{from_, to_, op_, static_cast<std::size_t>(all_.t().size())}, std::size_t{2});
        adder_->source(all_.t().host, one.partial);
        adder_->source(1 - all_.t().host, one.theirs);
      }
      moved = adder_->advance(one.target, ready > begin ? (ready - begin) / size_of(from_) : 0, one.count) || moved;
      if (adder_->done() != one.count) break;
      adder_.reset();
      spread();
      moved = true;
    }
    limit(transfer);
    return moved;
  }

  HostCollectives& all_;
  ReduceOp op_;
  DType to_, from_;
  std::vector<Segment> segments_;
  std::size_t posted_ = 0, reduced_ = 0, done_ = 0;
  std::optional<Adder> adder_;
  std::vector<Work> spreads_;
};

void HostCollectives::all_reduce_in_segments(const Request& request) { Segments{*this, request}.run(); }

}  // namespace troupe::detail
