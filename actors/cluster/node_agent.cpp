#include "mail_office.hpp"
#include "node_disk.hpp"
#include "node_machine.hpp"

#include "../io_thread.hpp"

#include <troupe/node.hpp>

#include <boost/asio/post.hpp>

#include <unistd.h>

#include <condition_variable>
#include <future>
#include <mutex>
#include <random>

namespace troupe {

namespace asio = boost::asio;
using namespace std::chrono_literals;

namespace detail {
namespace {

using Clock = std::chrono::steady_clock;

constexpr auto first_pause = 100ms, longest_pause = 2'000ms;  // between tries to join
constexpr auto seen_every = 1s;
constexpr auto goodbye_limit = 300ms;  // for the link's end at the agent's

class Agent final : public NodeAgent {
 public:
  Agent(NodeOptions options, std::function<void(const std::string&)> news) : options_(complete(std::move(options))), news_(std::move(news)) {}

  ~Agent() override {
    std::promise<void> closed;
    auto future = closed.get_future();
    asio::post(io_.io(), [this, &closed] {
      is_over_ = true;
      if (line_) line_->link->finish();
      end_runs();
      closed.set_value();
    });
    future.wait();
    {
      std::unique_lock lock{mutex_};
      changed_.wait_for(lock, goodbye_limit, [this] { return !has_link_; });
    }
    io_.stop();
    disk_.stop();
    for (auto* pool : {&jobs_, &reads_}) {
      pool->stop();
      pool->join();
    }
    finish_runs();
    if (line_) line_->link.reset();  // whose handlers own the line
  }

  void start() {
    std::promise<void> tried;
    asio::post(io_.io(), [this, &tried] {
      try {
        try_to_join();
        tried.set_value();
      } catch (...) {
        tried.set_exception(std::current_exception());
      }
    });
    tried.get_future().get();
  }

  void leave(std::chrono::milliseconds limit) override {
    asio::post(io_.io(), [this, limit] {
      if (is_over_ || is_leaving_) return;
      is_leaving_ = true;
      tell("leaves the cluster");
      if (!line_ || !is_joined_ || runs_.empty()) return go();
      line_->send(DrainNotice{limit.count()});
      leave_timer_.expires_after(limit);
      leave_timer_.async_wait([this](const auto& error) {
        if (!error) go();
      });
    });
  }

  Outcome wait() override {
    std::unique_lock lock{mutex_};
    changed_.wait(lock, [this] { return ended_.has_value(); });
    return *ended_;
  }

 private:
  static NodeOptions complete(NodeOptions options) {
    const bool has_tls = !options.security.directory.empty();
    if (options.name.empty()) options.name = has_tls ? options.security.name : host_name();
    if (!has_tls) options.security.name = options.name;
    if (options.resources.cpus == 0) {
      auto custom = std::move(options.resources.custom);
      options.resources = resources_of_machine();
      options.resources.custom = std::move(custom);
    }
    return options;
  }

  void tell(const std::string& text) {
    if (news_) news_(text);
  }

  // ---- joining ------------------------------------------------------------------------------------------------

  void try_to_join() {
    auto line = std::make_shared<HeadLine>();
    auto link_options = node_link_options();
    link_options.silence = std::min(link_options.silence, options_.head_grace);
    SecureLink::Handlers handlers;
    handlers.opened = [this, line](const ClusterIdentity&, const std::string&) { join(*line); };
    handlers.arrived = [this, line](const Packet& packet) { take(*line, packet); };
    handlers.closed = [this, line](const Outcome& outcome) { closed(*line, outcome); };
    line->link = SecureLink::connect(io_.io(), options_.join, ClusterRole::Node, ClusterRole::Head, options_.security, link_options, std::move(handlers));
    line_ = std::move(line);
    set_has_link(true);
  }

  void join(HeadLine& line) {
    auto address = options_.address.empty() ? line.link->local_address() : options_.address;
    line.send(JoinNode{node_protocol_version, options_.name, std::move(address), options_.resources, options_.labels, getpid()});
  }

  void take(HeadLine& line, const Packet& packet) {
    if (line_.get() != &line) return;
    try {
      route(decode(packet, true));
    } catch (const Failure& failure) {
      tell(std::string("the head spoke nonsense: ") + failure.what());
      line.link->close();
    }
  }

  void closed(HeadLine& line, const Outcome& outcome) {
    line.gate.close();
    if (line_.get() != &line) return;
    end_runs();
    line_.reset();
    set_has_link(false);
    if (options_.mail) office().disconnect("the link to the head has ended");
    const bool was_joined = std::exchange(is_joined_, false);
    const bool head_has_ended = was_joined && refusal_.empty() && (outcome.ok() || outcome.code() == Errc::Cancelled);
    if (is_over_ || is_leaving_ || (options_.end_with_head && head_has_ended)) return end({});
    const auto why = !refusal_.empty() ? std::exchange(refusal_, {}) : outcome.ok() ? "the head has ended" : outcome.text();
    if (was_joined || why != last_why_) tell((was_joined ? "lost the head at " : "cannot join ") + options_.join + ": " + why + "; tries again");
    last_why_ = why;
    if (was_joined) alone_since_ = Clock::now(), pause_ = first_pause;
    try_again_later(why);
  }

  void try_again_later(const std::string& why) {
    const auto limit = options_.give_up_after;
    if (limit.count() > 0 && Clock::now() - alone_since_ > limit) {
      return end({Errc::DeadlinePassed, "no head could be joined at " + options_.join + " within " + std::to_string(limit.count()) + " ms: " + why});
    }
    const std::chrono::milliseconds pause{pause_.count() / 2 + std::uniform_int_distribution<long>{0, pause_.count() / 2}(random_)};
    pause_ = std::min<std::chrono::milliseconds>(2 * pause_, longest_pause);
    retry_timer_.expires_after(pause);
    retry_timer_.async_wait([this](const auto& error) {
      if (error || is_over_ || is_leaving_) return;
      try {
        try_to_join();
      } catch (const Failure& failure) {  // a certificate that has expired since may be renewed
        tell(failure.what());
        try_again_later(failure.what());
      }
    });
  }

  [[nodiscard]] MailOffice& office() const { return static_cast<MailOffice&>(*options_.mail); }

  void connect_mail() {
    if (!options_.mail) return;
    office().connect(options_.name, [link = std::weak_ptr{line_->link}](const UserMail& letter) -> Outcome {
      const auto open = link.lock();
      return open ? open->send(encode(letter)) : Outcome{Errc::NodeLost, "the link to the head has ended"};
    });
  }

  void say_seen() {
    if (!is_joined_ || !line_) return;
    line_->send(NodeSeen{load_of_machine()});
    seen_timer_.expires_after(seen_every);
    seen_timer_.async_wait([this](const auto& error) {
      if (!error) say_seen();
    });
  }

  // ---- orders -------------------------------------------------------------------------------------------------

  void route(NodeMessage message) {
    if (const auto* refused = std::get_if<NodeRefused>(&message)) {
      refusal_ = refused->why;
    } else if (std::holds_alternative<Welcome>(message)) {
      is_joined_ = true;
      pause_ = first_pause;
      last_why_.clear();
      tell("joined " + options_.join + " as node " + options_.name);
      connect_mail();
      say_seen();
    } else if (auto* letter = std::get_if<UserMail>(&message)) {
      if (options_.mail) office().arrived(std::move(*letter));
    } else if (const auto* taken = std::get_if<OutputTaken>(&message)) {
      line_->gate.taken(taken->bytes);
    } else if (const auto* list = std::get_if<ListFiles>(&message)) {
      asio::post(reads_, [line = line_, question = *list] { line->send(list_files(question)); });
    } else if (const auto* read = std::get_if<ReadFile>(&message)) {
      asio::post(reads_, [line = line_, question = *read] { line->send(read_file(question, question.path)); });
    } else if (const auto* open = std::get_if<OpenRun>(&message)) {
      auto& run = runs_[open->run];
      if (run) return;
      run = std::make_shared<NodeRun>(io_.io(), disk_.io(), jobs_, line_, *open, options_.forward_output, options_.name);
      run->begin();
      tell("starts ranks of " + open->name);
    } else if (const auto* close = std::get_if<CloseRun>(&message)) {
      if (const auto found = runs_.find(close->run); found != runs_.end()) {
        end_run(found->second);
        runs_.erase(found);
      }
      if (is_leaving_ && runs_.empty()) go();
    } else {
      const auto id = std::visit([](const auto& order) {
        if constexpr (requires { order.run; }) return order.run;
        return std::uint64_t{0};
      }, message);
      if (const auto found = runs_.find(id); found != runs_.end()) found->second->take(std::move(message));
    }
  }

  // ---- ends ---------------------------------------------------------------------------------------------------

  // Waiting for processes to end would hold up the link.
  void end_run(const std::shared_ptr<NodeRun>& run) {
    run->retire();
    asio::post(reaper_.io(), [run] { run->end_processes(); });
    retired_.push_back(run);
    std::erase_if(retired_, [](const auto& weak) { return weak.expired(); });
  }

  void end_runs() {
    for (const auto& [id, run] : runs_) end_run(run);
    runs_.clear();
  }

  // The agent's own end: io no longer runs.
  void finish_runs() {
    reaper_.stop();
    for (const auto& weak : retired_) {
      if (const auto run = weak.lock()) run->end_processes();
    }
  }

  void go() {
    leave_timer_.cancel();
    end_runs();
    if (!line_) return end({});
    line_->link->finish();  // `closed` follows
  }

  void end(const Outcome& outcome) {
    is_over_ = true;
    const std::lock_guard lock{mutex_};
    if (!ended_) ended_ = outcome;
    changed_.notify_all();
  }

  void set_has_link(bool has) {
    const std::lock_guard lock{mutex_};
    has_link_ = has;
    changed_.notify_all();
  }

  const NodeOptions options_;
  const std::function<void(const std::string&)> news_;
  std::mutex mutex_;
  std::condition_variable changed_;
  bool has_link_ = false;
  std::optional<Outcome> ended_;
  IoThread io_, disk_, reaper_;  // what waits on the others may own a timer of the first
  asio::thread_pool jobs_{4}, reads_{2};  // what waits for the head, run by run; what the head waits for
  // The io thread's.
  asio::steady_timer retry_timer_{io_.io()}, leave_timer_{io_.io()}, seen_timer_{io_.io()};
  std::shared_ptr<HeadLine> line_;
  std::map<std::uint64_t, std::shared_ptr<NodeRun>> runs_;
  std::vector<std::weak_ptr<NodeRun>> retired_;
  bool is_joined_ = false, is_leaving_ = false, is_over_ = false;
  std::string refusal_, last_why_;
  Clock::time_point alone_since_ = Clock::now();
  std::chrono::milliseconds pause_{first_pause};
  std::minstd_rand random_{std::random_device{}()};
};

}  // namespace
}  // namespace detail

std::unique_ptr<NodeAgent> NodeAgent::start(NodeOptions options, std::function<void(const std::string&)> news) {
  auto agent = std::make_unique<detail::Agent>(std::move(options), std::move(news));
  agent->start();
  return agent;
}

}  // namespace troupe
