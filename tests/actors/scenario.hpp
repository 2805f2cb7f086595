#pragma once

#include <unistd.h>

#include <caf/all.hpp>
#include <caf/scheduler/test_coordinator.hpp>
#include <chrono>
#include <deque>
#include <filesystem>
#include <memory>
#include <string>
#include <troupe/caf_types.hpp>
#include <troupe/rank.hpp>
#include <troupe/trainer.hpp>

namespace troupe {

/// A directory that is gone after the test.
class TempDir {
 public:
  TempDir() {
    auto pattern = (std::filesystem::temp_directory_path() / "troupe-test-XXXXXX").string();
    path_ = ::mkdtemp(pattern.data());
  }
  ~TempDir() { std::filesystem::remove_all(path_); }
  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
};

/// Everything that an actor was sent, in order.
class Inbox {
 public:
  /// Takes the oldest message of this type, whatever came before it.
  template <class Message>
  std::optional<Message> take() {
    for (auto message = messages_.begin(); message != messages_.end(); ++message) {
      if (!message->match_elements<Message>()) continue;
      auto taken = message->get_as<Message>(0);
      messages_.erase(message);
      return taken;
    }
    return std::nullopt;
  }
  template <class Message>
  int count() const {
    int found = 0;
    for (const auto& message : messages_) found += message.match_elements<Message>();
    return found;
  }
  void add(caf::message message) { messages_.push_back(std::move(message)); }

 private:
  std::deque<caf::message> messages_;
};

/// An actor system on one thread under a virtual clock.
class VirtualTime {
 public:
  VirtualTime() { coordinator_.clock().current_time += std::chrono::hours{1}; }
  ~VirtualTime() { settle(); }
  caf::actor_system& system() { return system_; }
  /// Handles every message there is; no time passes.
  void settle() {
    while (coordinator_.try_run_once()) {
    }
  }
  /// Time passes, a step a call: one big jump would fire a re-armed timer only once.
  void advance(std::chrono::milliseconds time, std::chrono::milliseconds step = std::chrono::milliseconds{100}) {
    settle();
    for (; time.count() > 0; time -= step) {
      coordinator_.advance_time(std::min(time, step));
      settle();
    }
  }
  /// An actor that keeps all it gets; it ends with whom it is linked to.
  caf::actor spawn_inbox(std::shared_ptr<Inbox> inbox, const caf::actor& linked_to = {}) {
    return system_.spawn([inbox = std::move(inbox), linked_to](caf::event_based_actor* self) -> caf::behavior {
      if (linked_to) self->link_to(linked_to);
      self->set_exit_handler([self](const caf::exit_msg& exit) { self->quit(exit.reason); });
      self->set_default_handler([inbox](caf::scheduled_actor*, caf::message_view& view) -> caf::result<caf::message> {
        inbox->add(view.move_content_to_message());
        return caf::message{};
      });
      return {[](caf::unit_t) {}};
    });
  }

 private:
  struct Config : caf::actor_system_config {
    Config() {
      set("scheduler.policy", caf::atom("testing"));
      register_types(*this);
    }
  };
  Config config_;
  caf::actor_system system_{config_};
  caf::scheduler::test_coordinator& coordinator_ =
      dynamic_cast<caf::scheduler::test_coordinator&>(system_.scheduler());
};

/// Ranks that are inboxes: a test plays them.
class InboxPlacer final : public RankPlacer {
 public:
  struct Shared {
    std::vector<std::shared_ptr<Inbox>> ranks;
    std::vector<caf::actor> actors;
    std::vector<std::string> aborts;
    int fail_at_rank = -1;
    int places_asked = 0;
    RankPlacer::Found found;  // answers
    bool alive = false;
  };
  InboxPlacer(VirtualTime& time, std::shared_ptr<Shared> shared) : time_(time), shared_(std::move(shared)) {
    shared_->ranks.clear();
    shared_->actors.clear();
    shared_->alive = true;
  }
  ~InboxPlacer() override { shared_->alive = false; }
  caf::actor place(caf::event_based_actor* group, const RunRank& spec) override {
    if (spec.rank == shared_->fail_at_rank) throw Failure{Errc::StartFailed, "no more threads"};
    shared_->ranks.push_back(std::make_shared<Inbox>());
    shared_->actors.push_back(time_.spawn_inbox(shared_->ranks.back(), caf::actor_cast<caf::actor>(group)));
    return shared_->actors.back();
  }
  void find_places(int count, Found done) override {
    shared_->places_asked = count;
    shared_->found = std::move(done);
  }
  void abort(const std::string& reason) noexcept override { shared_->aborts.push_back(reason); }

 private:
  VirtualTime& time_;
  std::shared_ptr<Shared> shared_;
};

}  // namespace troupe
