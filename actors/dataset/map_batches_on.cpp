#include <troupe/dataset_actors.hpp>

#include <troupe/errors.hpp>

#include <caf/all.hpp>

#include <utility>

namespace troupe {

namespace {

/// Stream to the stage's caller: have it done.
struct CallStage {
  std::shared_ptr<arrow::RecordBatch> rows;
  BatchReply reply;
};

}  // namespace

}  // namespace troupe

CAF_ALLOW_UNSAFE_MESSAGE_TYPE(troupe::CallStage)

namespace troupe {

namespace {

struct CallerState {
  static inline const char* name = "troupe.stage_caller";
  std::vector<caf::actor> actors;
  MapOnOptions options;
  std::size_t next = 0;
};

std::exception_ptr failure_of(const caf::error& error, const CallerState& state, const caf::actor& who, const std::string& text) {
  const auto stage = "stage " + state.options.name + ", actor " + std::to_string(who.id()) + " (" + caf::to_string(who) + "): ";
  if (error == caf::sec::request_timeout) {
    return std::make_exception_ptr(Failure{Errc::DeadlinePassed, stage + "no answer within " + std::to_string(state.options.deadline.count()) + " ms"});
  }
  if (error == caf::sec::request_receiver_down || error.category() == caf::atom("exit")) {
    return std::make_exception_ptr(Failure{Errc::Aborted, stage + "it is dead (" + text + ")"});
  }
  return std::make_exception_ptr(Failure{Errc::DataMalformed, stage + (error == caf::sec::unexpected_response ? "it answered with something else than a MappedBatch" : text)});
}

/// Asks the stage's actors for the stream, which has no mailbox of its own.
caf::behavior stage_caller(caf::stateful_actor<CallerState>* self, std::vector<caf::actor> actors, MapOnOptions options) {
  self->state.actors = std::move(actors);
  self->state.options = std::move(options);
  return {
      [self](const CallStage& order) {
        auto& state = self->state;
        const auto who = state.actors[state.next++ % state.actors.size()];
        const auto reply = order.reply;
        self->request(who, state.options.deadline, MapBatch{order.rows})
            .then([reply](const MappedBatch& done) { reply(done.rows); },
                  [self, who, reply](const caf::error& error) { reply.fail(failure_of(error, self->state, who, self->system().render(error))); });
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
