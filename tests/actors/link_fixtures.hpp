#pragma once

// A listener and links in one process, and what came of them.

#include "cluster/link/certificate.hpp"
#include "cluster/link/private_file.hpp"
#include "cluster/secure_link.hpp"
#include "io_thread.hpp"

#include <gtest/gtest.h>
#include <unistd.h>

#include <chrono>
#include <condition_variable>
#include <ctime>
#include <filesystem>
#include <fstream>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

namespace troupe::testing {

using namespace std::chrono_literals;
using detail::Packet;
using detail::SecureLink;
using detail::SecureLinkOptions;
using detail::SecureListener;

class TemporaryDirectory {
 public:
  TemporaryDirectory() {
    auto pattern = (std::filesystem::temp_directory_path() / "troupe-link-test-XXXXXX").string();
    if (::mkdtemp(pattern.data()) == nullptr) throw Failure{Errc::StorageUnavailable, pattern + " cannot be made"};
    path_ = pattern;
  }
  ~TemporaryDirectory() { std::filesystem::remove_all(path_); }
  TemporaryDirectory(const TemporaryDirectory&) = delete;
  TemporaryDirectory& operator=(const TemporaryDirectory&) = delete;
  [[nodiscard]] const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
};

/// A cluster "test" whose CA lies in `directory()`, with certificates of a head, a node and an operator beside it.
class TestCluster {
 public:
  explicit TestCluster(const std::string& name = "test") {
    make_cluster_ca(directory(), name, valid);
    issue(ClusterRole::Head, "head");
    issue(ClusterRole::Node, "node");
    issue(ClusterRole::Operator, "operator");
  }
  [[nodiscard]] std::filesystem::path directory() const { return temporary_.path() / "ca"; }
  void issue(ClusterRole role, const std::string& name) { issue_certificate(directory(), role, name, valid, directory()); }
  /// A certificate with any URI and dates, as an attacker or a mistake makes it.
  void issue(const std::string& name, const std::string& uri, detail::Validity validity) {
    detail::Issuer issuer{std::move(detail::read_certificates(directory() / "ca.pem").front()), detail::read_key(directory() / "ca.key")};
    const auto key = detail::make_key();
    detail::write_file(directory() / (name + ".key"), detail::to_pem(*key), 0600, detail::Replace::Yes);
    detail::write_file(directory() / (name + ".pem"), detail::to_pem(*detail::make_leaf_of(issuer, *key, uri, validity)), 0644, detail::Replace::Yes);
  }
  [[nodiscard]] ClusterSecurity as(const std::string& name) const { return {directory(), name}; }

 private:
  static constexpr auto valid = 240h;  // long enough for no warning
  TemporaryDirectory temporary_;
};

inline ClusterSecurity plain(const std::string& name) { return {{}, name}; }

/// Calls of one link's handlers.
class Heard : public std::enable_shared_from_this<Heard> {
 public:
  [[nodiscard]] SecureLink::Handlers handlers() {
    const auto self = shared_from_this();
    return {.opened = [self](const ClusterIdentity& who, const std::string& where) { self->note([&] { self->peer = who; self->address = where; }); },
            .arrived = [self](Packet packet) { self->note([&] { self->packets.push_back(std::move(packet)); }); },
            .interrupted = [self](const std::string& text) { self->note([&] { ++self->interrupted; self->why = text; }); },
            .resumed = [self] { self->note([&] { ++self->resumed; }); },
            .closed = [self](const Outcome& end) { self->note([&] { ++self->num_closed; self->outcome = end; }); }};
  }
  template <class Holds>
  [[nodiscard]] bool wait(Holds holds, std::chrono::milliseconds limit = 10s) {
    std::unique_lock lock{mutex_};
    return changed_.wait_for(lock, limit, [&] { return holds(*this); });
  }
  [[nodiscard]] bool wait_open() { return wait([](const Heard& h) { return h.peer.has_value() || h.outcome.has_value(); }) && peer.has_value(); }
  [[nodiscard]] std::optional<Outcome> wait_closed(std::chrono::milliseconds limit = 10s) {
    (void)wait([](const Heard& h) { return h.outcome.has_value(); }, limit);
    const std::lock_guard lock{mutex_};
    return outcome;
  }
  [[nodiscard]] bool wait_packets(std::size_t count, std::chrono::milliseconds limit = 20s) {
    return wait([&](const Heard& h) { return h.packets.size() >= count; }, limit);
  }

  std::optional<ClusterIdentity> peer;
  std::string address, why;
  std::vector<Packet> packets;
  int interrupted = 0, resumed = 0, num_closed = 0;
  std::optional<Outcome> outcome;

 private:
  template <class Change>
  void note(Change change) {
    const std::lock_guard lock{mutex_};
    change();
    changed_.notify_all();
  }
  std::mutex mutex_;
  std::condition_variable changed_;
};

/// A head that listens, keeps its links, and can echo.
class TestHead {
 public:
  explicit TestHead(const ClusterSecurity& security, SecureListener::Options options = {}) {
    listener = SecureListener::open(io.io(), ClusterRole::Head, security, options, [this](const ClusterIdentity& peer, const std::shared_ptr<SecureLink>& link) {
      if (!refuse_with.empty()) throw Failure{Errc::AlreadyExists, refuse_with};
      auto heard = std::make_shared<Heard>();
      auto handlers = heard->handlers();
      if (echoes) handlers.arrived = [link_of_peer = std::weak_ptr<SecureLink>{link}](Packet packet) { (void)link_of_peer.lock()->send(std::move(packet)); };
      const std::lock_guard lock{mutex};
      names.push_back(peer.name);
      links.push_back(link);
      heards.push_back(std::move(heard));
      return handlers;
    });
  }
  [[nodiscard]] std::string address() const { return "127.0.0.1:" + std::to_string(listener->port()); }
  [[nodiscard]] std::size_t num_accepted() {
    const std::lock_guard lock{mutex};
    return links.size();
  }
  [[nodiscard]] std::shared_ptr<SecureLink> link(std::size_t i = 0) {
    const std::lock_guard lock{mutex};
    return links.at(i);
  }
  [[nodiscard]] std::shared_ptr<Heard> heard(std::size_t i = 0) {
    const std::lock_guard lock{mutex};
    return heards.at(i);
  }

  ~TestHead() { io.stop(); }
  TestHead(const TestHead&) = delete;
  TestHead& operator=(const TestHead&) = delete;

  detail::IoThread io;  // links must not outlive it
  bool echoes = false;
  std::string refuse_with;
  std::shared_ptr<SecureListener> listener;
  std::mutex mutex;
  std::vector<std::string> names;
  std::vector<std::shared_ptr<SecureLink>> links;
  std::vector<std::shared_ptr<Heard>> heards;};

/// The dialing end, on a thread of its own.
struct TestNode {
  TestNode(const std::string& to, const ClusterSecurity& security, SecureLinkOptions options = {}, ClusterRole role = ClusterRole::Node, ClusterRole wanted = ClusterRole::Head)
      : link(SecureLink::connect(io.io(), to, role, wanted, security, options, heard->handlers())) {}

  ~TestNode() { io.stop(); }
  TestNode(const TestNode&) = delete;
  TestNode& operator=(const TestNode&) = delete;

  std::shared_ptr<Heard> heard = std::make_shared<Heard>();
  detail::IoThread io;
  std::shared_ptr<SecureLink> link;
};

/// What became of one try to connect.
inline Outcome outcome_of(const std::string& to, const ClusterSecurity& security, SecureLinkOptions options = {}, ClusterRole role = ClusterRole::Node,
                          ClusterRole wanted = ClusterRole::Head) {
  TestNode node{to, security, options, role, wanted};
  if (node.heard->wait_open()) return {};
  return node.heard->outcome.value_or(Outcome{Errc::Internal, "neither opened nor closed"});
}

inline std::size_t resident_bytes() {
  std::size_t pages = 0, resident = 0;
  std::ifstream{"/proc/self/statm"} >> pages >> resident;
  return resident * static_cast<std::size_t>(::sysconf(_SC_PAGESIZE));
}

template <class Holds>
bool eventually(Holds holds, std::chrono::milliseconds limit = 10s) {
  const auto end = std::chrono::steady_clock::now() + limit;
  while (!holds()) {
    if (std::chrono::steady_clock::now() > end) return false;
    std::this_thread::sleep_for(2ms);
  }
  return true;
}

}  // namespace troupe::testing
