#include "host_links.hpp"

#include "blame.hpp"

#include <troupe/errors.hpp>

#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <cstring>
#include <optional>

namespace troupe::detail {

namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

/// A connection that says nothing is let go after this time, or earlier when others want its place.
constexpr milliseconds kGuestPatience{5000};
constexpr std::size_t kMostGuests = 128;
constexpr int kAcceptedAtOnce = 16;
constexpr milliseconds kRetry{50};
constexpr milliseconds kCheck{50};

/// The first bytes after the handshake, both ways.
struct Hello {
  std::array<char, 8> magic{'t', 'r', 'o', 'u', 'p', 'e', 'H', '1'};
  std::int32_t from = 0, to = 0, size = 0;
  Channel channel = Channel::Data;
  bool operator==(const Hello&) const = default;
};

std::string identity(const MeetingPlan& plan, int from, int to, Channel channel) {
  return "troupe group " + plan.group + " rank " + std::to_string(from) + " to rank " + std::to_string(to) +
         (channel == Channel::Data ? " data" : " control");
}

/// A stream on its way to a Hello.
struct Arrival {
  std::unique_ptr<TlsStream> stream;
  Clock::time_point until;
  bool shaken = false;
  std::array<std::byte, sizeof(Hello)> hello{};
  std::size_t got = 0;

  /// True when a Hello has come; throws when none will.
  bool step(const Hello* send) {
    if (!shaken) {
      shaken = stream->shake();
      if (shaken && send && stream->write(std::as_bytes(std::span{send, 1})) != sizeof *send)
        throw Failure{Errc::NetworkFailed, "the connection broke"};
    }
    if (!shaken) return false;
    (void)stream->flush();
    got += stream->read(std::span{hello}.subspan(got));
    if (got < hello.size() && stream->closed()) throw Failure{Errc::NetworkFailed, "the connection broke"};
    return got == hello.size();
  }
  [[nodiscard]] Hello said() const {
    Hello all;
    std::memcpy(&all, hello.data(), sizeof all);
    return all;
  }
};

/// A connection that this rank makes.
struct Outgoing {
  std::size_t link;
  Channel channel;
  SocketAddress to;
  Clock::time_point again{};  ///< when to try next
  std::optional<Arrival> arrival;
};

class Joining {
 public:
  Joining(const MeetingPlan& plan, const Fd& listener, const std::vector<std::string>& endpoints, milliseconds timeout,
          const std::function<void()>& check)
      : plan_(plan), listener_(listener), check_(check), timeout_(timeout), deadline_(Clock::now() + timeout) {
    const auto& t = plan.topology;
    if (endpoints.size() != static_cast<std::size_t>(t.hosts()))
      throw Failure{Errc::InvalidArgument, "hosts: " + std::to_string(endpoints.size()) + " endpoints for " + std::to_string(t.hosts()) + " hosts"};
    if (!t.in_lane()) return;
    for (int h = 0; h < t.hosts(); ++h) {
      if (h == t.host) continue;
      const int peer = t.begin(h) + t.place();
      links_.push_back({peer, h});
      if (peer < t.rank) continue;
      for (const auto channel : {Channel::Data, Channel::Control})
        outgoing_.push_back({links_.size() - 1, channel, SocketAddress::of_endpoint(endpoints[static_cast<std::size_t>(h)]), {}, {}});
    }
  }

  std::vector<HostLink> run() {
    while (!complete()) {
      if (Clock::now() >= deadline_) late();
      wait();
      accept();
      for (auto& out : outgoing_) step(out);
      for (auto& guest : guests_) step(guest);
      std::erase_if(guests_, [](const auto& guest) { return !guest.stream; });
    }
    for (auto& link : links_) {
      if (plan_.plain) link.data().go_plain();
      link.data().widen();
    }
    return std::move(links_);
  }

 private:
  [[nodiscard]] bool complete() const {
    return std::all_of(links_.begin(), links_.end(), [](const auto& link) { return link.streams[0] && link.streams[1]; });
  }

  [[noreturn]] void late() const {
    std::vector<int> missing;
    for (const auto& link : links_)
      if (!link.streams[0] || !link.streams[1]) missing.push_back(plan_.topology.name_of(link.rank));
    const auto who = (missing.size() == 1 ? "rank " : "ranks ") + list_ranks(missing);
    throw Failure{Errc::DeadlinePassed, "hosts: rank " + std::to_string(plan_.topology.name_of(plan_.topology.rank)) + " on " + plan_.address +
                                            " waited for " + who + ", which did not come within " + std::to_string(timeout_.count()) +
                                            " ms (are their hosts up, and may they connect to each other's ephemeral ports?)"};
  }

  void wait() {
    std::vector<pollfd> fds{{listener_.get(), POLLIN, 0}};
    auto until = std::min(deadline_, Clock::now() + kCheck);
    for (const auto& out : outgoing_) {
      if (out.arrival) fds.push_back({out.arrival->stream->fd(), static_cast<short>(out.arrival->stream->wanted() | (connecting(out) ? POLLOUT : 0)), 0});
      else if (!links_[out.link].streams[static_cast<std::size_t>(out.channel)]) until = std::min(until, out.again);
    }
    for (const auto& guest : guests_) {
      fds.push_back({guest.stream->fd(), guest.stream->wanted(), 0});
      until = std::min(until, guest.until);
    }
    const auto time = std::chrono::ceil<milliseconds>(until - Clock::now()).count();
    (void)poll(fds.data(), fds.size(), static_cast<int>(std::max<std::int64_t>(time, 0)));
    check_();
  }

  static bool connecting(const Outgoing& out) {
    sockaddr_storage peer{};
    socklen_t length = sizeof peer;
    return getpeername(out.arrival->stream->fd(), reinterpret_cast<sockaddr*>(&peer), &length) != 0;
  }

  void accept() {
    for (int i = 0; i < kAcceptedAtOnce; ++i) {
      auto fd = accept_one(listener_);
      if (fd.get() < 0) return;
      if (guests_.size() >= kMostGuests) guests_.erase(guests_.begin());  // the one that has been silent for longest
      guests_.push_back({std::make_unique<TlsStream>(fd.release(), plan_.key, TlsStream::End::Accepts, ""), Clock::now() + kGuestPatience});
    }
  }

  [[nodiscard]] Hello hello(int to, Channel channel) const { return {{'t', 'r', 'o', 'u', 'p', 'e', 'H', '1'}, plan_.topology.rank, to, plan_.topology.size(), channel}; }

  void step(Outgoing& out) {
    auto& link = links_[out.link];
    auto& place = link.streams[static_cast<std::size_t>(out.channel)];
    if (place) return;
    const auto now = Clock::now();
    if (!out.arrival) {
      if (now < out.again) return;
      out.again = now + kRetry;
      auto fd = begin_to_connect(plan_.address, out.to);
      if (fd.get() < 0) return;
      out.arrival.emplace();
      out.arrival->stream = std::make_unique<TlsStream>(fd.release(), plan_.key, TlsStream::End::Connects,
                                                        identity(plan_, plan_.topology.rank, link.rank, out.channel));
      out.arrival->until = now + kGuestPatience;
    }
    if (connecting(out) && !failed(out)) {
      if (now >= out.arrival->until) out.arrival.reset();
      return;
    }
    try {
      const auto mine = hello(link.rank, out.channel);
      if (out.arrival->step(&mine)) {
        auto theirs = out.arrival->said();
        std::swap(theirs.from, theirs.to);
        if (theirs != mine) throw Failure{Errc::ProtocolError, "another rank answered"};
        place = std::move(out.arrival->stream);
        out.arrival.reset();
      } else if (now >= out.arrival->until) {
        out.arrival.reset();
      }
    } catch (const Failure&) {
      out.arrival.reset();  // again in a moment, until the deadline
      out.again = now + kRetry;
    }
  }

  static bool failed(const Outgoing& out) {
    int error = 0;
    socklen_t length = sizeof error;
    return getsockopt(out.arrival->stream->fd(), SOL_SOCKET, SO_ERROR, &error, &length) != 0 || error != 0;
  }

  void step(Arrival& guest) {
    try {
      if (!guest.step(nullptr)) {
        if (Clock::now() >= guest.until) guest.stream.reset();
        return;
      }
      auto said = guest.said();
      const auto link = std::find_if(links_.begin(), links_.end(), [&](const auto& one) { return one.rank == said.from; });
      std::swap(said.from, said.to);
      if (link == links_.end() || link->rank > plan_.topology.rank || said != hello(link->rank, said.channel) || said.channel > Channel::Control ||
          guest.stream->identity() != identity(plan_, link->rank, plan_.topology.rank, said.channel))
        throw Failure{Errc::ProtocolError, "no rank that is expected here"};
      const auto mine = hello(link->rank, said.channel);
      if (guest.stream->write(std::as_bytes(std::span{&mine, 1})) != sizeof mine) throw Failure{Errc::NetworkFailed, "gone"};
      link->streams[static_cast<std::size_t>(said.channel)] = std::move(guest.stream);
    } catch (const Failure&) {
      guest.stream.reset();
    }
  }

  const MeetingPlan& plan_;
  const Fd& listener_;
  const std::function<void()>& check_;
  milliseconds timeout_;
  Clock::time_point deadline_;
  std::vector<HostLink> links_;
  std::vector<Outgoing> outgoing_;
  std::vector<Arrival> guests_;
};

}  // namespace

std::vector<HostLink> connect_lane(const MeetingPlan& plan, const Fd& listener, const std::vector<std::string>& endpoints, milliseconds timeout,
                                   const std::function<void()>& check) {
  return Joining{plan, listener, endpoints, timeout, check}.run();
}

}  // namespace troupe::detail
