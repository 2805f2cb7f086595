// What a cluster's link costs beside a bare socket: round trips and small messages, on loopback, both ends in this process.
//
//   link_bench [--json FILE]     about 15 s; a table on stderr
#include "cluster/secure_link.hpp"
#include "control_figures.hpp"
#include "io_thread.hpp"

#include <troupe/cluster_security.hpp>

#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <future>
#include <iostream>
#include <thread>

namespace {

using namespace troupe;
using namespace troupe::bench;
using detail::IoThread;
using detail::Packet;
using detail::SecureLink;
using detail::SecureListener;
using Json = nlohmann::ordered_json;

constexpr std::size_t message_bytes = 100;
constexpr int pings = 5000, messages = 200'000, runs = 5;

/// A CA, and certificates of a head and a node.
class Certificates {
 public:
  Certificates() {
    auto pattern = (std::filesystem::temp_directory_path() / "troupe-link-bench-XXXXXX").string();
    if (::mkdtemp(pattern.data()) == nullptr) throw Failure{Errc::StorageUnavailable, pattern + " cannot be made"};
    path_ = pattern;
    make_cluster_ca(path_ / "ca", "bench", std::chrono::hours{240});
    issue_certificate(path_ / "ca", ClusterRole::Head, "head", std::chrono::hours{240}, path_ / "ca");
    issue_certificate(path_ / "ca", ClusterRole::Node, "node", std::chrono::hours{240}, path_ / "ca");
  }
  ~Certificates() { std::filesystem::remove_all(path_); }
  Certificates(const Certificates&) = delete;
  Certificates& operator=(const Certificates&) = delete;
  [[nodiscard]] ClusterSecurity as(const std::string& name, bool tls) const { return {tls ? path_ / "ca" : std::filesystem::path{}, name}; }

 private:
  std::filesystem::path path_;
};

/// A link and what its far end does: sends back, or counts.
class Pair {
 public:
  Pair(const Certificates& certificates, bool tls, bool echoes, SecureLink::Handlers handlers) {
    listener_ = SecureListener::open(far_.io(), ClusterRole::Head, certificates.as("head", tls), {}, [this, echoes](const auto&, const auto& accepted) {
      far_link_ = accepted;
      SecureLink::Handlers far;
      far.arrived = [this, echoes](Packet packet) {
        if (echoes) {
          (void)far_link_->send(std::move(packet));
        } else if (++count_ == messages) {
          (void)far_link_->send({1, "all"});
          count_ = 0;
        }
      };
      far.closed = [](const Outcome&) {};
      return far;
    });
    std::promise<void> opened;
    handlers.opened = [&](const auto&, const auto&) { opened.set_value(); };
    handlers.closed = [](const Outcome& outcome) {
      if (!outcome) std::cerr << "link_bench: " << outcome.text() << "\n";
    };
    link = SecureLink::connect(near_.io(), "127.0.0.1:" + std::to_string(listener_->port()), ClusterRole::Node, ClusterRole::Head, certificates.as("node", tls), {}, std::move(handlers));
    opened.get_future().wait();
  }
  ~Pair() {
    near_.stop();
    far_.stop();
  }
  Pair(const Pair&) = delete;
  Pair& operator=(const Pair&) = delete;

 private:
  IoThread near_, far_;
  std::shared_ptr<SecureListener> listener_;
  std::shared_ptr<SecureLink> far_link_;
  int count_ = 0;

 public:
  std::shared_ptr<SecureLink> link;
};

/// Median time of a round trip, in us: the answer's handler sends the next.
double round_trip_us(const Certificates& certificates, bool tls) {
  std::vector<double> times;
  std::promise<void> done;
  double sent = 0;
  SecureLink* link = nullptr;
  SecureLink::Handlers handlers;
  handlers.arrived = [&](Packet packet) {
    const auto now = now_s();
    times.push_back((now - sent) * 1e6);
    if (times.size() == pings) return done.set_value();
    sent = now;
    (void)link->send(std::move(packet));
  };
  Pair pair{certificates, tls, true, std::move(handlers)};
  link = pair.link.get();
  sent = now_s();
  (void)link->send({1, std::string(message_bytes, 'x')});
  done.get_future().wait();
  return median(times);
}

double messages_per_s(const Certificates& certificates, bool tls) {
  std::promise<void> done;
  SecureLink::Handlers handlers;
  handlers.arrived = [&](const Packet&) { done.set_value(); };
  Pair pair{certificates, tls, false, std::move(handlers)};
  const std::string message(message_bytes, 'x');
  const auto begin = now_s();
  for (int i = 0; i < messages; ++i) (void)pair.link->send({1, message});
  done.get_future().wait();
  return messages / (now_s() - begin);
}

// ---- bare sockets -----------------------------------------------------------------------------------------------------------------------------

std::pair<int, int> tcp_pair() {
  const int listener = ::socket(AF_INET, SOCK_STREAM, 0), one = ::socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in at{};
  at.sin_family = AF_INET;
  at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof at;
  if (::bind(listener, reinterpret_cast<sockaddr*>(&at), sizeof at) != 0 || ::listen(listener, 1) != 0 ||
      ::getsockname(listener, reinterpret_cast<sockaddr*>(&at), &size) != 0 || ::connect(one, reinterpret_cast<sockaddr*>(&at), sizeof at) != 0) {
    throw Failure{Errc::StartFailed, std::string("no socket: ") + std::strerror(errno)};
  }
  const int other = ::accept(listener, nullptr, nullptr);
  const int yes = 1;
  for (const int socket : {one, other}) ::setsockopt(socket, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
  ::close(listener);
  return {one, other};
}

bool read_all(int socket, char* bytes, std::size_t size) {
  for (std::size_t done = 0; done < size;) {
    const auto got = ::read(socket, bytes + done, size - done);
    if (got <= 0) return false;
    done += static_cast<std::size_t>(got);
  }
  return true;
}

bool write_all(int socket, const char* bytes, std::size_t size) { return ::write(socket, bytes, size) == static_cast<ssize_t>(size); }

double bare_round_trip_us() {
  const auto [one, other] = tcp_pair();
  std::thread echo{[socket = other] {
    char bytes[message_bytes];
    while (read_all(socket, bytes, sizeof bytes) && write_all(socket, bytes, sizeof bytes)) {
    }
  }};
  std::vector<double> times;
  char bytes[message_bytes] = {};
  for (int i = 0; i < pings; ++i) {
    const auto begin = now_s();
    if (!write_all(one, bytes, sizeof bytes) || !read_all(one, bytes, sizeof bytes)) break;
    times.push_back((now_s() - begin) * 1e6);
  }
  ::close(one);
  echo.join();
  ::close(other);
  return median(times);
}

/// One write a message, which is what a plain program does.
double bare_messages_per_s() {
  const auto [one, other] = tcp_pair();
  const auto begin = now_s();
  std::thread reader{[socket = other] {
    char bytes[message_bytes];
    for (int i = 0; i < messages && read_all(socket, bytes, sizeof bytes); ++i) {
    }
  }};
  const char bytes[message_bytes] = {};
  for (int i = 0; i < messages && write_all(one, bytes, sizeof bytes); ++i) {
  }
  reader.join();
  const auto took = now_s() - begin;
  ::close(one);
  ::close(other);
  return messages / took;
}

}  // namespace

int main(int argc, char** argv) {
  const Certificates certificates;
  std::vector<double> plain, tls, bare, rate, bare_rate, over_plain, over_tls, rate_ratio;
  for (int run = 0; run < runs; ++run) {
    bare.push_back(bare_round_trip_us());
    plain.push_back(round_trip_us(certificates, false));
    tls.push_back(round_trip_us(certificates, true));
    rate.push_back(messages_per_s(certificates, true));
    bare_rate.push_back(bare_messages_per_s());
    over_plain.push_back(bare.back() / plain.back());
    over_tls.push_back(bare.back() / tls.back());
    rate_ratio.push_back(rate.back() / bare_rate.back());
  }
  Json figures = Json::array();
  figures.push_back(figure("link_round_trip_plain", median(plain), {"us", 60, "its limit"}, runs));
  figures.push_back(figure("link_round_trip_tls", median(tls), {"us", 120, "its limit"}, runs));
  figures.push_back(figure("link_messages_tls", median(rate), {"messages/s", 100'000, "its limit", true}, runs));
  // What a bare socket does in the same run; a link beats, counts and hands over to handlers besides.
  figures.push_back(figure("link_round_trip_plain_vs_socket", median(plain), {"us", median(bare), "blocking socket, 100 bytes", false, 0.3}, runs, median(over_plain)));
  figures.push_back(figure("link_round_trip_tls_vs_socket", median(tls), {"us", median(bare), "blocking socket, 100 bytes", false, 0.2}, runs, median(over_tls)));
  figures.push_back(figure("link_messages_tls_vs_socket", median(rate), {"messages/s", median(bare_rate), "socket, a write a message", true, 0.5}, runs, median(rate_ratio)));
  if (argc > 2 && std::string(argv[1]) == "--json") std::ofstream{argv[2]} << figures.dump(1) << "\n";
  return 0;
}
