#include "head.hpp"

#include "head_run.hpp"
#include "mail_office.hpp"
#include "operator.hpp"

#include <boost/asio/post.hpp>

#include <algorithm>
#include <future>

namespace troupe::detail {

namespace asio = boost::asio;
using namespace std::chrono_literals;

namespace {

constexpr auto goodbye_limit = 500ms;
constexpr std::size_t kept_ended_runs = 20;

// One certificate may serve a row of nodes: "worker" those that call themselves "worker-0", "worker-1", …
bool may_be_called(const std::string& name, const std::string& certificate) {
  return name == certificate || name.starts_with(certificate + "-") || name.starts_with(certificate + ".");
}

bool is_name(const std::string& name) {
  constexpr std::string_view allowed = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-";
  return !name.empty() && name.size() <= 128 && name.find_first_not_of(allowed) == std::string::npos && name.front() != '.' && name.front() != '-';
}

}  // namespace

/// A new peer, until it is a node.
class Head::Door : public std::enable_shared_from_this<Door> {
 public:
  Door(Head& head, ClusterIdentity peer, std::weak_ptr<SecureLink> link) : head_(head), peer_(std::move(peer)), link_(std::move(link)) {}

  void arrived(const Packet& packet) {
    const auto link = link_.lock();
    if (!link) return;
    try {
      auto message = decode(packet, false);
      if (node_) return head_.heard(node_, std::move(message));
      const auto* request = std::get_if<JoinNode>(&message);
      if (!request) throw Failure{Errc::ProtocolError, "it sent " + node_type_name(packet.type) + " before it joined"};
      node_ = head_.join(*request, peer_, link, address);
    } catch (const Failure& failure) {
      (void)link->send(encode(NodeRefused{failure.what()}));
      link->finish();
    }
  }

  void closed(const Outcome& outcome) {
    const auto link = link_.lock();
    if (node_) head_.lost(node_, outcome.ok() ? "it left" : outcome.text());
    head_.link_closed(link);
  }

  std::string address;

 private:
  Head& head_;
  const ClusterIdentity peer_;
  const std::weak_ptr<SecureLink> link_;
  std::shared_ptr<HeadNode> node_;
};

Head::Head(ClusterOptions options) : options_(std::move(options)) {}

Head::~Head() {
  stopping_ = true;
  if (options_.mail) static_cast<MailOffice&>(*options_.mail).disconnect("the cluster has ended");
  asio::post(io(), [this] {
    if (listener_) listener_->close();
    for (const auto& run : runs_) run->questions().close("the cluster has ended");
    for (const auto& link : std::set{links_}) link->finish();
  });
  {
    std::unique_lock lock{mutex_};
    changed_.wait_for(lock, goodbye_limit, [this] { return !has_links_; });
  }
  reads_.stop();
  reads_.join();  // while its own thread answers them
  thread_.stop();
  disk_.stop();
  output_.stop();
  for (const auto& [name, node] : nodes_) node->link.reset();  // whose handlers own the node
}

// Letters from this program come from any thread.
void Head::listen() {
  if (options_.mail) {
    static_cast<MailOffice&>(*options_.mail).connect({}, [this](const UserMail& letter) -> Outcome {
      asio::post(io(), [this, letter] { pass_mail(letter); });
      return {};
    });
  }
  SecureListener::Options options;
  options.listen = options_.listen;
  options.link = node_link_options();
  options.link.silence = options_.node_silence;
  listener_ = SecureListener::open(io(), ClusterRole::Head, options_.security, options,
                                   [this](const ClusterIdentity& peer, const std::shared_ptr<SecureLink>& link) { return greet(peer, link); });
}

std::string Head::address() const {
  const auto& listen = options_.listen;
  return listen.substr(0, listen.rfind(':')) + ":" + std::to_string(listener_->port());
}

SecureLink::Handlers Head::greet(const ClusterIdentity& peer, const std::shared_ptr<SecureLink>& link) {
  links_.insert(link);
  {
    const std::lock_guard lock{mutex_};
    has_links_ = true;
  }
  if (peer.role == ClusterRole::Operator) return greet_operator(link);
  const auto door = std::make_shared<Door>(*this, peer, link);
  SecureLink::Handlers handlers;
  handlers.opened = [door](const ClusterIdentity&, const std::string& from) { door->address = from; };
  handlers.arrived = [door](const Packet& packet) { door->arrived(packet); };
  handlers.closed = [door](const Outcome& outcome) { door->closed(outcome); };
  return handlers;
}

// Its session may answer from other threads, for as long as the link lasts.
SecureLink::Handlers Head::greet_operator(const std::shared_ptr<SecureLink>& link) {
  const std::weak_ptr<SecureLink> weak = link;
  const auto session = OperatorSession::make(*this, [weak](Packet packet) {
    const auto open = weak.lock();
    return open ? open->send(std::move(packet)) : Outcome{};
  });
  SecureLink::Handlers handlers;
  handlers.arrived = [session](const Packet& packet) { session->arrived(packet); };
  handlers.closed = [this, session, weak](const Outcome&) {
    session->close();
    link_closed(weak.lock());
  };
  return handlers;
}

void Head::link_closed(const std::shared_ptr<SecureLink>& link) {
  if (link) links_.erase(link);
  const std::lock_guard lock{mutex_};
  has_links_ = !links_.empty();
  changed_.notify_all();
}

// ---- members ------------------------------------------------------------------------------------------------

std::shared_ptr<HeadNode> Head::join(const JoinNode& request, const ClusterIdentity& peer, const std::shared_ptr<SecureLink>& link,
                                     const std::string& address) {
  if (request.version != node_protocol_version) {
    throw Failure{Errc::ProtocolError, "node " + request.name + " speaks version " + std::to_string(request.version) + " of the nodes' protocol, this head " +
                                           std::to_string(node_protocol_version) + "; use one version of Troupe on all"};
  }
  if (!is_name(request.name)) throw Failure{Errc::InvalidArgument, "a node's name has 1 to 128 of the characters A-Z a-z 0-9 . _ -, and begins with none of the last"};
  if (!options_.security.directory.empty() && !may_be_called(request.name, peer.name)) {
    throw Failure{Errc::InvalidArgument, "the certificate is of node " + peer.name + ", which may not join as " + request.name};
  }
  if (const auto found = nodes_.find(request.name); found != nodes_.end()) {  // it has come back before its end was seen
    const auto before = found->second;
    lost(before, "it has started anew");
    before->link->close();
  }
  auto node = std::make_shared<HeadNode>();
  node->name = request.name;
  node->address = request.address.empty() ? address : request.address;
  node->link = link;
  node->total = node->free = request.resources;
  node->devices.assign(static_cast<std::size_t>(std::clamp(request.resources.gpus, 0.0, 1024.0)), 1.0);
  node->labels = request.labels;
  node->pid = request.pid;
  node->heard = std::chrono::steady_clock::now();
  nodes_[node->name] = node;
  away_.erase(node->name);
  node->send(Welcome{options_.security.name});
  {
    const std::lock_guard lock{mutex_};
    num_up_ = static_cast<int>(nodes_.size());
    changed_.notify_all();
  }
  places_changed();
  return node;
}

void Head::heard(const std::shared_ptr<HeadNode>& node, NodeMessage message) {
  node->heard = std::chrono::steady_clock::now();
  if (auto* letter = std::get_if<UserMail>(&message)) {
    letter->from_node = node->name;
    return pass_mail(std::move(*letter));
  }
  if (auto* line = std::get_if<OutputFromRank>(&message)) return print(node, std::move(*line));
  if (const auto* notice = std::get_if<DrainNotice>(&message)) {
    (void)drain_now(node->name, "node " + node->name + " leaves within " + std::to_string(notice->limit_ms) + " ms");
    return;
  }
  const auto id = std::visit([](const auto& news) {
    if constexpr (requires { news.run; }) return news.run;
    return std::uint64_t{0};
  }, message);
  for (const auto& run : runs_) {
    if (run->id() == id) return run->heard(node, std::move(message));
  }
}

// To this program's actors, to a node, or back with the reason.
void Head::pass_mail(UserMail letter) {
  if (letter.to_node.empty() && options_.mail) return static_cast<MailOffice&>(*options_.mail).arrived(std::move(letter));
  const auto node = nodes_.find(letter.to_node);
  Outcome sent{Errc::NotFound, letter.to_node.empty() ? "the head's program has no actors for others" : "there is no node " + letter.to_node + " in this cluster"};
  if (node != nodes_.end()) sent = node->second->link->send(encode(letter));
  if (sent.ok() || letter.is_answer || !letter.wants_answer) return;
  std::swap(letter.from_node, letter.to_node);
  letter.is_answer = true;
  letter.error = sent.code();
  letter.type.clear();
  letter.bytes = sent.text();
  pass_mail(std::move(letter));
}

void Head::lost(const std::shared_ptr<HeadNode>& node, const std::string& why) {
  const auto found = nodes_.find(node->name);
  if (found == nodes_.end() || found->second != node) return;
  nodes_.erase(found);
  NodeStatus status;
  status.name = node->name;
  status.address = node->address;
  status.state = NodeState::Away;
  status.total = node->total;
  status.labels = node->labels;
  status.pid = node->pid;
  status.heard_seconds_ago = std::chrono::duration<double>(node->heard - began_).count();  // turned into an age when it is told
  away_[node->name] = status;
  {
    const std::lock_guard lock{mutex_};
    num_up_ = static_cast<int>(nodes_.size());
  }
  if (options_.mail) static_cast<MailOffice&>(*options_.mail).lost(node->name, why);
  for (const auto& run : std::vector{runs_}) run->node_lost(node, why);
}

// Never on this thread: nobody may read this program's output.
void Head::print(const std::shared_ptr<HeadNode>& node, OutputFromRank line) {
  std::string name;
  for (const auto& run : runs_) {
    if (run->id() == line.run) name = run->name();
  }
  asio::post(output_.io(), [this, node, name = std::move(name), line = std::move(line)]() mutable {
    write_line({line.is_error, line.rank, line.text}, stopping_);
    const auto bytes = line.text.size();
    if (line.rank >= 0) logs_.add(name, line.rank, node->name, std::move(line.text));
    node->send(OutputTaken{bytes});
  });
}

bool Head::drain_now(const std::string& name, const std::string& reason) {
  const auto found = nodes_.find(name);
  if (found == nodes_.end()) return false;
  found->second->is_draining = true;
  for (const auto& run : std::vector{runs_}) run->node_drains(found->second, reason);
  return true;
}

bool Head::stop_now(const std::string& name, bool at_once) {
  for (const auto& run : std::vector{runs_}) {
    if (run->name() == name) return run->stop("stopped by an operator", at_once), true;
  }
  return false;
}

// ---- runs ---------------------------------------------------------------------------------------------------

void Head::add_run(std::shared_ptr<HeadRun> run) { runs_.push_back(std::move(run)); }

void Head::remove_run(const std::shared_ptr<HeadRun>& run) {
  ended_runs_.push_back(run->status_now());
  if (ended_runs_.size() > kept_ended_runs) ended_runs_.pop_front();
  std::erase(runs_, run);
}

void Head::places_changed() {
  std::vector<std::shared_ptr<HeadRun>> waiting;
  for (const auto& run : runs_) {
    if (run->is_waiting()) waiting.push_back(run);
  }
  std::ranges::sort(waiting, {}, [](const auto& run) { return run->waits_since(); });
  for (const auto& run : waiting) run->try_places();
}

// ---- what others ask ----------------------------------------------------------------------------------------

ClusterStatus Head::status_now() const {
  const auto now = std::chrono::steady_clock::now();
  const auto age = [&](auto since) { return std::chrono::duration<double>(now - since).count(); };
  ClusterStatus status;
  status.up_seconds = age(began_);
  status.runs.assign(ended_runs_.begin(), ended_runs_.end());
  std::map<std::string, std::vector<std::string>> ranks_on;
  for (const auto& run : runs_) {
    const auto& of_run = status.runs.emplace_back(run->status_now());
    for (std::size_t rank = 0; rank < of_run.node_of_rank.size(); ++rank) ranks_on[of_run.node_of_rank[rank]].push_back(of_run.name + "/" + std::to_string(rank));
  }
  for (const auto& [name, node] : nodes_) {
    status.nodes.push_back({name, node->address, node->is_draining ? NodeState::Draining : NodeState::Up, node->total, node->free, node->labels, node->pid, age(node->heard),
                            std::move(ranks_on[name])});
  }
  for (auto [name, node] : away_) {
    node.heard_seconds_ago = status.up_seconds - node.heard_seconds_ago;
    status.nodes.push_back(std::move(node));
  }
  return status;
}

template <class Work>
auto Head::on_thread(Work work) const {
  auto& io = thread_.io();
  if (io.get_executor().running_in_this_thread()) return work();
  std::promise<decltype(work())> told;
  auto future = told.get_future();
  asio::post(io, [&] { told.set_value(work()); });
  return future.get();
}

ClusterStatus Head::status() const {
  return on_thread([this] { return status_now(); });
}

bool Head::wait_for_nodes(int count, std::chrono::milliseconds limit) {
  std::unique_lock lock{mutex_};
  return changed_.wait_for(lock, limit, [&] { return num_up_ >= count; });
}

namespace {

std::string list_of(const std::vector<std::string>& names) {
  std::string list;
  for (const auto& name : names) list += (list.empty() ? "" : ", ") + name;
  return list.empty() ? "there is none" : "there is " + list;
}

}  // namespace

void Head::drain(const std::string& node) {
  const auto there = on_thread([&] {
    std::vector<std::string> names;
    if (drain_now(node, "node " + node + " is drained")) return std::optional<std::vector<std::string>>{};
    for (const auto& [name, known] : nodes_) names.push_back(name);
    return std::optional{names};
  });
  if (there) throw Failure{Errc::NotFound, "there is no node " + node + " in this cluster; " + list_of(*there)};
}

void Head::stop(const std::string& run, bool now) {
  const auto there = on_thread([&] {
    std::vector<std::string> names;
    if (stop_now(run, now)) return std::optional<std::vector<std::string>>{};
    for (const auto& known : runs_) names.push_back(known->name());
    return std::optional{names};
  });
  if (there) throw Failure{Errc::NotFound, "there is no run " + run + " on this cluster; " + list_of(*there)};
}

}  // namespace troupe::detail
