#include "head_run.hpp"

#include "../frame.hpp"

#include <boost/asio/post.hpp>

#include <algorithm>
#include <csignal>

namespace troupe::detail {

/// What the process's node has told of it.
class HeadProcess::Observer final : public RankObserver {
 public:
  std::function<void()> ask;  // set once, before it is used

  std::optional<RankBeat> beat(std::uint64_t attempt) override {
    const std::lock_guard lock{mutex_};
    return attempt == attempt_ ? beat_ : std::nullopt;
  }
  bool ask_stacks() override {
    {
      const std::lock_guard lock{mutex_};
      stacks_.reset();
    }
    ask();
    return true;
  }
  bool have_stacks() const noexcept override {
    const std::lock_guard lock{mutex_};
    return stacks_.has_value();
  }
  std::string stacks_told() override {
    const std::lock_guard lock{mutex_};
    return stacks_.value_or("its node told no stacks\n");
  }
  void complete(RunError& error, std::uint64_t, bool was_ours) const override {
    const std::lock_guard lock{mutex_};
    if (!facts_) return;
    if (!error.pid) error.pid = facts_->pid;
    if (!error.step) error.step = facts_->step;
    if (error.code == Errc::RankKilled && error.signal == SIGKILL && !was_ours && facts_->code == Errc::OutOfMemory) error.code = facts_->code;
    if (error.signal) error.message += facts_->message;
    if (error.details.find("last events of rank") == std::string::npos) error.details += facts_->details;
  }

  void seen(const RankSeen& news) {
    const std::lock_guard lock{mutex_};
    attempt_ = news.attempt;
    beat_ = news.beat;
  }
  void told(const ProcessStacks& news) {
    const std::lock_guard lock{mutex_};
    stacks_ = news.text;
  }
  void over(RunError facts) {
    const std::lock_guard lock{mutex_};
    facts_ = std::move(facts);
  }

 private:
  mutable std::mutex mutex_;
  Attempt attempt_ = 0;
  std::optional<RankBeat> beat_;
  std::optional<std::string> stacks_;
  std::optional<RunError> facts_;
};

HeadProcess::HeadProcess(std::weak_ptr<Head> head, std::weak_ptr<HeadRun> run, std::uint64_t number, int of_rank, ProcessHandlers own)
    : id(number), rank(of_rank), handlers(std::move(own)), head_(std::move(head)), run_(std::move(run)), observer_(std::make_shared<Observer>()) {}

template <class Work>
void HeadProcess::post(Work work) {
  const auto head = head_.lock();
  if (!head) return;
  boost::asio::post(head->io(), [self = shared_from_this(), work = std::move(work)]() mutable {
    if (const auto run = self->run_.lock()) work(*self, *run);
  });
}

void HeadProcess::order(const NodeMessage& message) {
  if (place) place->send(message);
}

Outcome HeadProcess::send(const LinkMessage& message) {
  std::string frame;
  try {
    frame = encode_frame(message, LinkLimits{}.frame_bytes);
  } catch (const Failure& failure) {
    return {failure.code(), failure.what()};
  }
  // One without a place yet does not know its seat.
  const bool needs_seat = std::holds_alternative<RunRank>(message);
  post([message = needs_seat ? message : LinkMessage{}, type = static_cast<std::uint16_t>(message.index()), frame = std::move(frame)](HeadProcess& self, HeadRun& run) mutable {
    auto bytes = frame.substr(frame_header_bytes);
    if (!self.place) return self.early.push_back(std::holds_alternative<RunRank>(message) ? std::move(message) : decode_message(type, bytes));
    if (const auto* order = std::get_if<RunRank>(&message)) return run.tell(self, run.complete(*order));
    self.order(ToRank{run.id(), self.id, type, std::move(bytes)});
  });
  return {};
}

void HeadProcess::read_output(std::function<void(std::vector<std::string>)> done) {
  post([done = std::move(done)](HeadProcess& self, HeadRun& run) mutable {
    if (!self.place) return done({});
    self.readers_.push_back(std::move(done));
    self.order(ReadOutput{run.id(), self.id});
  });
}

void HeadProcess::finish() {
  post([](HeadProcess& self, HeadRun& run) { self.order(FinishProcess{run.id(), self.id}); });
}

void HeadProcess::kill() noexcept {
  post([](HeadProcess& self, HeadRun& run) {
    self.was_killed = true;
    if (self.place) return self.order(KillProcess{run.id(), self.id});
    self.ended({{Errc::Aborted, "ended before its process was started"}, {}, {}, {}});
  });
}

std::shared_ptr<RankObserver> HeadProcess::observer() {
  const std::lock_guard lock{mutex_};
  if (!observer_->ask) {
    observer_->ask = [weak = weak_from_this()] {
      if (const auto self = weak.lock()) self->post([](HeadProcess& me, HeadRun& run) { me.order(AskProcessStacks{run.id(), me.id}); });
    };
  }
  return observer_;
}

std::string HeadProcess::node() const {
  const std::lock_guard lock{mutex_};
  return node_name_;
}

void HeadProcess::set_place(const std::shared_ptr<HeadNode>& node) {
  place = node;
  const std::lock_guard lock{mutex_};
  node_name_ = node->name;
}

void HeadProcess::heard(NodeMessage message, std::uint64_t run) {
  if (const auto* news = std::get_if<FromRank>(&message)) {
    try {
      auto content = decode_message(news->type, news->bytes);
      if (is_order(content)) throw Failure{Errc::ProtocolError, "its process sent " + std::string(name_of(content)) + ", which it only receives"};
      if (handlers.arrived) handlers.arrived(std::move(content));
    } catch (const Failure& failure) {
      order(KillProcess{run, id});
      ended({{}, {failure.code(), failure.what()}, {}, {}});
    }
  } else if (const auto* seen = std::get_if<RankSeen>(&message)) {
    observer_->seen(*seen);
  } else if (const auto* stacks = std::get_if<ProcessStacks>(&message)) {
    observer_->told(*stacks);
  } else if (auto* output = std::get_if<OutputTold>(&message)) {
    for (const auto& reader : std::exchange(readers_, {})) reader(output->lines);
  } else if (auto* over = std::get_if<ProcessOver>(&message)) {
    observer_->over(std::move(over->facts));
    ended({{over->start, over->start_text}, {over->link, over->link_text}, {over->by_signal, over->value}, std::move(over->last_lines)});
  }
}

void HeadProcess::ended(ProcessEnded end) {
  place.reset();
  for (const auto& reader : std::exchange(readers_, {})) reader({});
  if (const auto told = std::exchange(handlers, {}); told.ended) told.ended(std::move(end));
}

}  // namespace troupe::detail
