#include "node_run.hpp"

#include "node_disk.hpp"
#include "program_file.hpp"

#include "../frame.hpp"

#include <boost/asio/post.hpp>

namespace troupe::detail {

namespace asio = boost::asio;
using namespace std::chrono_literals;

namespace {

constexpr int stack_looks = 20;
constexpr auto stack_look_every = 10ms;

/// What keeps the node from running the head's program; empty: nothing.
std::string why_not(const OpenRun& order, const std::string& node) {
  try {
    const auto here = program_digest(order.program);
    if (here == ProgramDigest{order.program_bytes, order.program_digest}) return {};
    return "node " + node + ": " + order.program + " is another build than the head's (" + std::to_string(here.bytes) + " bytes here, " +
           std::to_string(order.program_bytes) + " there); put the same file on every node";
  } catch (const Failure&) {
    return "node " + node + ": there is no program " + order.program + "; put the head's program at the same path on every node";
  }
}

bool is_news(const RankBeat& beat, const std::optional<RankBeat>& told) {
  return !told || told->progress != beat.progress || told->steps != beat.steps || told->waiting_in != beat.waiting_in || told->is_stopped != beat.is_stopped ||
         told->collectives != beat.collectives || told->stop_calls != beat.stop_calls;
}

/// Of a process that has ended: pid, crash record, last events, whether memory ran out.
RunError facts_of(const RankObserver& observer, const ProcessEnded& end, Attempt attempt, bool was_killed) {
  RunError facts;
  if (end.status.by_signal) facts.signal = end.status.value;
  facts.code = was_killed ? Errc::Aborted : end.status.by_signal ? Errc::RankKilled : Errc::RankExited;
  observer.complete(facts, attempt, was_killed);
  return facts;
}

}  // namespace

NodeRun::NodeRun(asio::io_context& io, asio::io_context& disk, asio::thread_pool& jobs, std::shared_ptr<HeadLine> head, OpenRun order, bool forward_output,
                 std::string node)
    : io_(io), disk_(disk), head_(std::move(head)), order_(std::move(order)), forward_output_(forward_output), node_(std::move(node)),
      files_(std::make_shared<NodeDisk>(jobs, head_, order_.run, node_)), beat_(io) {}

NodeRun::~NodeRun() = default;

void NodeRun::begin() { check_program(); }

void NodeRun::retire() {
  is_closing_ = true;
  files_->close();
  beat_.cancel();
}

void NodeRun::end_processes() {
  entries_.clear();  // before the pool that they are of
  pool_.reset();
}

PoolOrder NodeRun::pool_order() {
  PoolOrder order;
  order.program = order_.program;
  order.arguments = order_.arguments;
  order.environment = order_.environment;
  order.cpus_per_rank = order_.cpus_per_rank;
  order.start_timeout = std::chrono::milliseconds{order_.start_timeout_ms};
  if (forward_output_) {
    order.output = [this](OutputLine line) {
      if (head_->gate.pass(line.text.size(), is_closing_)) head_->send(OutputFromRank{order_.run, line.rank, line.is_error, std::move(line.text)});
    };
  }
  return order;
}

void NodeRun::check_program() {
  asio::post(disk_, [self = shared_from_this()] {
    auto why = why_not(self->order_, self->node_);
    asio::post(self->io_, [self, why = std::move(why)] {
      if (self->is_closing_) return;
      self->refusal_ = why;
      if (why.empty()) self->pool_ = std::make_unique<ProcessPool>(self->pool_order());
      self->watch();
      self->resume();
    });
  });
}

void NodeRun::resume() {
  is_busy_ = false;
  while (!is_busy_ && !later_.empty()) {
    auto message = std::move(later_.front());
    later_.pop_front();
    carry_out(std::move(message));
  }
}

void NodeRun::take(NodeMessage message) {
  if (files_->take(message)) return;
  if (is_busy_) {  // what would end the attempt's processes ends their waiting for a checkpoint, too
    if (const auto* abort = std::get_if<AbortAttempt>(&message)) files_->abort(abort->attempt);
    if (const auto* closing = std::get_if<CloseAttempt>(&message)) files_->abort(closing->attempt);
    return later_.push_back(std::move(message));
  }
  carry_out(std::move(message));
}

NodeRun::Entry* NodeRun::find(std::uint64_t process) {
  const auto found = entries_.find(process);
  return found == entries_.end() ? nullptr : found->second.get();
}

void NodeRun::carry_out(NodeMessage message) {
  if (const auto* order = std::get_if<OpenAttempt>(&message)) return open_attempt(*order);
  if (const auto* order = std::get_if<TakeProcess>(&message)) return take_process(*order);
  if (const auto* order = std::get_if<ToRank>(&message)) return to_rank(*order);
  if (const auto* order = std::get_if<AskProcessStacks>(&message)) return ask_stacks(order->process);
  if (const auto* order = std::get_if<GiveBackProcess>(&message)) {
    if (const auto* entry = find(order->process)) pool_->give_back(entry->process);
    entries_.erase(order->process);
  } else if (const auto* reading = std::get_if<ReadOutput>(&message)) {
    const auto* entry = find(reading->process);
    if (!entry) return head_->send(OutputTold{order_.run, reading->process, {}});
    entry->process->read_output([head = head_, run = order_.run, process = reading->process](std::vector<std::string> lines) {
      head->send(OutputTold{run, process, std::move(lines)});
    });
  } else if (const auto* finish = std::get_if<FinishProcess>(&message)) {
    if (const auto* entry = find(finish->process)) entry->process->finish();
  } else if (const auto* kill = std::get_if<KillProcess>(&message)) {
    if (auto* entry = find(kill->process)) {
      entry->was_killed = true;
      entry->process->kill();
    }
  } else if (const auto* abort = std::get_if<AbortAttempt>(&message)) {
    if (memory_ && abort->attempt == attempt_) memory_->abort(abort->reason);
  } else if (const auto* closing = std::get_if<CloseAttempt>(&message)) {
    if (closing->attempt == attempt_) memory_.reset();
  } else if (const auto* spares = std::get_if<KeepSpares>(&message)) {
    if (pool_) pool_->keep_spares(spares->count);
  } else if (std::holds_alternative<StartAnew>(message)) {
    if (pool_) pool_->start_anew();
  }
}

// ---- an attempt ---------------------------------------------------------------------------------------------

void NodeRun::open_attempt(const OpenAttempt& order) {
  is_busy_ = true;
  files_->open(order, [self = shared_from_this(), order](const std::string& why) {
    asio::post(self->io_, [self, order, why] {
      if (self->is_closing_) return;
      self->attempt_opened(order, why);
      self->resume();
    });
  });
}

void NodeRun::attempt_opened(const OpenAttempt& order, const std::string& refusal) {
  attempt_ = order.attempt;
  attempt_refusal_ = refusal_.empty() ? refusal : refusal_;
  memory_.reset();
  local_rank_.clear();
  for (const auto rank : order.ranks) local_rank_.emplace(rank, static_cast<int>(local_rank_.size()));
  if (!attempt_refusal_.empty()) return;
  try {
    pool_->begin_attempt(std::vector<int>(order.ranks.begin(), order.ranks.end()));
    memory_ = SharedGroup::create(static_cast<int>(order.ranks.size()), std::chrono::milliseconds{order.timeout_ms});
  } catch (const Failure& failure) {
    attempt_refusal_ = "node " + node_ + ": " + failure.what();
  }
}

void NodeRun::refuse(std::uint64_t process, Errc code, const std::string& why) {
  ProcessOver news;
  news.run = order_.run;
  news.process = process;
  news.start = code;
  news.start_text = why;
  head_->send(news);
}

void NodeRun::take_process(const TakeProcess& order) {
  if (order.attempt != attempt_ || !attempt_refusal_.empty() || !memory_) {
    return refuse(order.process, Errc::StartFailed, attempt_refusal_.empty() ? "node " + node_ + ": the attempt is over" : attempt_refusal_);
  }
  auto entry = std::make_shared<Entry>();
  entry->attempt = order.attempt;
  ProcessHandlers handlers;
  handlers.arrived = [head = head_, run = order_.run, process = order.process](const LinkMessage& message) {
    auto frame = encode_frame(message, LinkLimits{}.frame_bytes);
    head->send(FromRank{run, process, static_cast<std::uint16_t>(message.index()), frame.substr(frame_header_bytes)});
  };
  handlers.ended = [weak = weak_from_this(), &io = io_, process = order.process](ProcessEnded end) {
    asio::post(io, [weak, process, end = std::move(end)]() mutable {
      if (const auto self = weak.lock(); self && !self->is_closing_) self->process_ended(process, std::move(end));
    });
  };
  entry->process = pool_->take(order.rank, std::move(handlers));
  pool_->give_seat(entry->process, memory_, order.attempt);
  entries_[order.process] = std::move(entry);
}

void NodeRun::to_rank(const ToRank& order) {
  const auto* entry = find(order.process);
  if (!entry) return;
  try {
    const auto message = decode_message(order.type, order.bytes);
    if (is_order(message)) entry->process->send(message).or_throw();
  } catch (const Failure&) {
    entry->process->kill();  // its end is told
  }
}

// What the observer finds out takes long enough to hold up a beat.
void NodeRun::process_ended(std::uint64_t process, ProcessEnded end) {
  const auto found = entries_.find(process);
  if (found == entries_.end()) return;
  const auto entry = found->second;
  entries_.erase(found);
  // Not the process: it must not outlive its pool.
  asio::post(disk_, [head = head_, run = order_.run, process, observer = entry->process->observer(), attempt = entry->attempt,
                     was_killed = entry->was_killed, end = std::move(end)] {
    ProcessOver news{run,
                     process,
                     end.start.code(),
                     end.start.text(),
                     end.link.code(),
                     end.link.text(),
                     end.status.by_signal,
                     end.status.value,
                     end.last_lines,
                     facts_of(*observer, end, attempt, was_killed)};
    head->send(news);
  });
}

// ---- what ranks are at --------------------------------------------------------------------------------------

void NodeRun::watch() {
  beat_.expires_after(std::chrono::milliseconds{std::max<std::int64_t>(10, order_.beat_ms)});
  beat_.async_wait([weak = weak_from_this()](const auto& error) {
    const auto self = weak.lock();
    if (error || !self || self->is_closing_) return;
    for (const auto& [process, entry] : self->entries_) {
      const auto beat = entry->process->observer()->beat(entry->attempt);
      if (!beat || !is_news(*beat, entry->told)) continue;
      entry->told = beat;
      self->head_->send(RankSeen{self->order_.run, process, entry->attempt, *beat});
    }
    self->watch();
  });
}

void NodeRun::ask_stacks(std::uint64_t process) {
  if (const auto* entry = find(process)) {
    (void)entry->process->observer()->ask_stacks();
    stacks_due(process, stack_looks);
  }
}

void NodeRun::stacks_due(std::uint64_t process, int looks_left) {
  const auto* entry = find(process);
  if (!entry) return;
  const auto observer = entry->process->observer();
  if (looks_left == 0 || observer->have_stacks()) return head_->send(ProcessStacks{order_.run, process, observer->stacks_told()});
  const auto timer = std::make_shared<asio::steady_timer>(io_, stack_look_every);
  timer->async_wait([weak = weak_from_this(), timer, process, looks_left](const auto& error) {
    if (const auto self = weak.lock(); self && !error && !self->is_closing_) self->stacks_due(process, looks_left - 1);
  });
}

}  // namespace troupe::detail
