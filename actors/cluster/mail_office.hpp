#pragma once

#include "node_messages.hpp"

#include <troupe/cluster_mail.hpp>

#include <atomic>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>

namespace troupe::detail {

/// Between a program's ClusterMail and its links. Threads: any.
class MailOffice final : public ClusterMail, public std::enable_shared_from_this<MailOffice> {
 public:
  /// Sends a letter on its way; not ok: why it cannot go.
  using Carrier = std::function<Outcome(const UserMail& letter)>;

  MailOffice(caf::actor_system& system, MailTypes types);
  ~MailOffice() override;

  void publish(const std::string& name, caf::actor actor) override;
  caf::actor find(const std::string& node, const std::string& name) override;

  // ---- the link's
  /// @param node this program's name in the cluster, empty: the head's
  void connect(const std::string& node, Carrier carrier);
  void disconnect(const std::string& why);
  /// Answers that are waited for from `node` do not come any more.
  void lost(const std::string& node, const std::string& why);
  void arrived(UserMail letter);

 private:
  struct Waiting {
    std::string node;
    caf::actor proxy;
  };

  /// @param promise what the answer goes to, at the proxy
  void send(const caf::actor& proxy, UserMail letter, bool is_request);
  void answer(UserMail to, const std::string& type, std::string bytes);
  void refuse(UserMail to, Errc code, const std::string& text);
  /// Gives the answer to the proxy that asked.
  void answered(UserMail letter);
  Outcome carry(const UserMail& letter);
  friend struct ProxyActor;
  friend struct DeskActor;

  const MailTypes types_;
  caf::actor_system& system_;
  caf::actor desk_;  ///< sends and asks on behalf of the other programs
  std::atomic<std::uint64_t> ids_{0};
  std::mutex mutex_;
  std::string node_;
  Carrier carrier_;
  std::string why_away_ = "this program has joined no cluster";
  std::map<std::string, caf::actor> published_;
  std::map<std::uint64_t, Waiting> waiting_;
};

}  // namespace troupe::detail
