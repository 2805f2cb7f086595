#include <troupe/dataset_actors.hpp>

#include <troupe/errors.hpp>

#include <caf/all.hpp>

#include <algorithm>
#include <map>
#include <optional>
#include <utility>

namespace troupe {

namespace {

/// Stream to the stage's caller: have it done.
struct CallStage {
  std::shared_ptr<arrow::RecordBatch> rows;
  BatchReply reply;
};

/// The caller to itself: look whose deadline has passed.
struct LookAtDeadlines {};

}  // namespace

}  // namespace troupe

CAF_ALLOW_UNSAFE_MESSAGE_TYPE(troupe::CallStage)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(troupe::LookAtDeadlines)

namespace troupe {

namespace {

struct CallerState {
  static inline const char* name = "troupe.stage_caller";
  struct Call {
    caf::actor who;
    BatchReply reply;
    caf::actor_clock::time_point due;
  };
  std::vector<caf::actor> actors;
  MapOnOptions options;
  std::uint64_t calls = 0;
  std::map<std::uint64_t, Call> open;  ///< by number
  bool looks = false;                  ///< a LookAtDeadlines is on its way

  [[nodiscard]] std::optional<Call> take(std::uint64_t number) {
    const auto node = open.extract(number);
    return node ? std::optional{node.mapped()} : std::nullopt;
  }
  [[nodiscard]] std::string about(const caf::actor& who) const {
    return "stage " + options.name + ", actor " + std::to_string(who.id()) + " (" + caf::to_string(who) + "): ";
  }
};

std::exception_ptr failure(Errc code, const std::string& text) { return std::make_exception_ptr(Failure{code, text}); }

std::exception_ptr failure_of(const caf::error& error, const std::string& about, const std::string& text) {
  const bool is_dead = error == caf::sec::request_receiver_down || error.category() == caf::atom("exit");
  if (is_dead) return failure(Errc::Aborted, about + "it is dead (" + text + ")");
  return failure(Errc::DataMalformed, about + (error == caf::sec::unexpected_response ? "it answered with something else than a MappedBatch" : text));
}

/// Asks the stage's actors for the stream, which has no mailbox of its own.
///
/// Deadlines are looked at by one short timer: a request's own timer stays in CAF's clock after the answer has come, and keeps the caller, and all
/// actors it knows, until the deadline.
caf::behavior stage_caller(caf::stateful_actor<CallerState>* self, std::vector<caf::actor> actors, MapOnOptions options) {
  self->state.actors = std::move(actors);
  self->state.options = std::move(options);
  // An actor that ends with an answer owed says nothing by itself.
  for (const auto& actor : self->state.actors) self->monitor(actor);
  self->set_down_handler([self](const caf::down_msg& down) {
    auto& open = self->state.open;
    for (auto call = open.begin(); call != open.end();) {
      if (call->second.who.address() != down.source) {
        ++call;
        continue;
      }
      const auto lost = std::move(call->second);
      call = open.erase(call);
      lost.reply.fail(failure(Errc::Aborted, self->state.about(lost.who) + "it is dead (" + self->system().render(down.reason) + ")"));
    }
  });
  const auto look_later = [self] {
    using namespace std::chrono_literals;
    if (self->state.open.empty() || std::exchange(self->state.looks, true)) return;
    self->delayed_send(self, std::clamp<std::chrono::milliseconds>(self->state.options.deadline / 8, 1ms, 200ms), LookAtDeadlines{});
  };
  return {
      [self, look_later](const CallStage& order) {
        auto& state = self->state;
        const auto number = state.calls++;
        const auto who = state.actors[number % state.actors.size()];
        state.open.emplace(number, CallerState::Call{who, order.reply, self->clock().now() + state.options.deadline});
        look_later();
        self->request(who, caf::infinite, MapBatch{order.rows})
            .then([self, number](const MappedBatch& done) {
                    if (const auto call = self->state.take(number)) call->reply(done.rows);
                  },
                  [self, number](const caf::error& error) {
                    const auto call = self->state.take(number);
                    if (call) call->reply.fail(failure_of(error, self->state.about(call->who), self->system().render(error)));
                  });
      },
      [self, look_later](LookAtDeadlines) {
        auto& state = self->state;
        state.looks = false;
        const auto now = self->clock().now();
        for (auto call = state.open.begin(); call != state.open.end();) {
          if (call->second.due > now) {
            ++call;
            continue;
          }
          const auto late = std::move(call->second);
          call = state.open.erase(call);
          late.reply.fail(failure(Errc::DeadlinePassed, state.about(late.who) + "no answer within " + std::to_string(state.options.deadline.count()) + " ms"));
        }
        look_later();
      },
  };
}

}  // namespace

Dataset map_batches_on(const Dataset& dataset, caf::actor_system& system, std::vector<caf::actor> actors, MapOnOptions options) {
  if (options.name.empty()) throw Failure{Errc::InvalidArgument, "map_batches_on: give the stage a name"};
  const auto refuse = [&](const std::string& text) { throw Failure{Errc::InvalidArgument, "map_batches_on, stage " + options.name + ": " + text}; };
  if (actors.empty()) refuse("there is no actor");
  for (const auto& actor : actors) {
    if (!actor) refuse("one of the actors is none (a handle that was moved from?)");
  }
  if (options.concurrency < 1) refuse("concurrency = " + std::to_string(options.concurrency) + "; it must be at least 1");
  if (options.deadline.count() < 1) refuse("deadline = " + std::to_string(options.deadline.count()) + " ms; it must be at least 1");
  const StepOptions step{.name = options.name, .concurrency = options.concurrency, .batch_size = options.batch_size,
                         .changes_num_rows = options.changes_num_rows, .schema = options.schema};
  // Hidden: the system does not wait for it; it ends when the last data set with this step is gone.
  auto caller = system.spawn<caf::hidden>(stage_caller, std::move(actors), std::move(options));
  return dataset.map_batches_async(
      [caller = std::move(caller)](std::shared_ptr<arrow::RecordBatch> rows, BatchReply reply) { caf::anon_send(caller, CallStage{std::move(rows), std::move(reply)}); }, step);
}

Dataset map_batches_on(const Dataset& dataset, caf::actor_system& system, caf::actor actor, MapOnOptions options) {
  return map_batches_on(dataset, system, std::vector<caf::actor>{std::move(actor)}, std::move(options));
}

}  // namespace troupe
