#include "simulation_bugs.hpp"

namespace troupe::sim {

namespace {

/// Between a Trainer and its keeper.
caf::behavior shim(caf::event_based_actor* self, const caf::actor& trainer, KeeperParts parts, Bug bug) {
  const auto keeper = spawn_checkpoint_keeper_with(self->system(), caf::actor_cast<caf::actor>(self), std::move(parts));
  self->link_to(trainer);
  self->set_exit_handler([self](const caf::exit_msg& exit) { self->quit(exit.reason); });  // the keeper is linked, and ends with it
  self->set_default_handler([self, trainer, keeper](caf::scheduled_actor*, caf::message_view& view) -> caf::result<caf::message> {
    const bool answer = self->current_sender() && self->current_sender()->id() == keeper.id();
    self->send(answer ? trainer : keeper, view.move_content_to_message());
    return caf::message{};
  });
  return {
      [=](const CommitCheckpoint& order) {
        if (bug == Bug::LostAcknowledgement) {
          const auto& checkpoint = order.checkpoint;
          const std::filesystem::path run = "/runs/run";
          self->send(trainer, CheckpointKept{{Checkpoint{run / checkpoint_name(checkpoint.index)}, checkpoint.metrics, checkpoint.index}, {}});
        }
        if (bug == Bug::DoubleCommit) self->send(keeper, order);
        self->send(keeper, order);
      },
      [=](const CheckpointKept& news) {
        if (bug != Bug::LostAcknowledgement) self->send(trainer, news);
      },
  };
}

}  // namespace

caf::actor spawn_keeper_with_bug(caf::actor_system& system, const caf::actor& trainer, KeeperParts parts, Bug bug) {
  if (bug == Bug::None || bug == Bug::StaleAttempt) return spawn_checkpoint_keeper_with(system, trainer, std::move(parts));
  return system.spawn(shim, trainer, std::move(parts), bug);
}

}  // namespace troupe::sim
