#include "exceptions.hpp"
#include "worker_group_state.hpp"

namespace troupe {

namespace {

using GroupActor = caf::stateful_actor<GroupState>;

// News of ranks, which arrives in every phase.
caf::message_handler rank_news(GroupState& state) {
  return {
      [&state](const SeatOpened& news) {
        if (!state.is_stale(news.attempt)) state.seat_opened(news);
      },
      [&state](const RankStarted& news) {
        if (!state.is_stale(news.attempt)) state.rank_started(news);
      },
      [&state](Reported& news) {
        if (!state.is_stale(news.attempt)) state.forward(std::move(news));
      },
      [&state](CheckpointWritten& news) {
        if (!state.is_stale(news.attempt)) state.forward(std::move(news));
      },
      [&state](const Progressed& news) {
        if (!state.is_stale(news.attempt)) state.forward(news);
      },
      [&state](BarrierReached& news) {
        if (!state.is_stale(news.attempt)) state.barrier_reached(std::move(news));
      },
      [&state](const Beat& news) {
        if (!state.is_stale(news.attempt)) state.watch.beat(news);
      },
      [&state](const StacksTold& news) {
        if (!state.is_stale(news.attempt)) state.watch.stacks_told(news.rank, news.text);
      },
      [&state](const StopCounted& news) {
        if (!state.is_stale(news.attempt)) state.stop_counted(news.rank, news.calls);
      },
      [&state](const RankDone& news) {
        if (!state.is_stale(news.attempt)) state.rank_done(news);
      },
      [&state](const RankLost& news) {
        if (!state.is_stale(news.attempt)) state.rank_lost(news.rank, news.error, news.places);
      },
  };
}

// Orders of the Trainer and the group's own timers.
caf::message_handler orders(GroupState& state) {
  return {
      [&state](const StopGroup& order) {
        if (!state.is_stale(order.attempt)) state.stop(order);
      },
      [&state](const FindPlaces& order) {
        if (!state.is_stale(order.attempt)) state.find_places(order.count);
      },
      [&state](const PlacesFound& news) {
        if (!state.is_stale(news.attempt)) state.forward(news);
      },
      [&state](const AbortGroup& order) {
        if (!state.is_stale(order.attempt)) state.fail(Errc::Cancelled, order.reason, order.at_once);
      },
      [&state](LookDue) { state.watch.look(); },
      [&state](StacksOverdue) { state.watch.stacks_overdue(); },
      [&state](WaitOverdue timer) {
        switch (timer.wait) {
          case Wait::Start: return state.start_overdue();
          case Wait::Barrier: return state.barriers_overdue();
          case Wait::Heed: return state.stop_unheeded();
          case Wait::Stop: return state.stop_overdue();
          case Wait::End: return state.end_overdue();
        }
      },
  };
}

caf::behavior group_behavior(GroupActor* self, const caf::actor& trainer, PlacerFactory make_placer) {
  auto& state = self->state;
  state.self = self;
  state.trainer = trainer;
  state.make_placer = std::move(make_placer);
  keep_exceptions(self);
  self->link_to(trainer);
  self->set_exit_handler([&state](const caf::exit_msg& exit) { state.exited(exit); });
  self->set_down_handler([&state](const caf::down_msg& down) { state.rank_down(down); });
  return {[self](StartGroup& order) {
    self->become(orders(self->state).or_else(rank_news(self->state)));
    self->state.begin(std::move(order));
  }};
}

}  // namespace

caf::actor spawn_worker_group(caf::actor_system& system, caf::actor trainer, PlacerFactory make_placer) {
  return system.spawn(group_behavior, std::move(trainer), std::move(make_placer));
}

}  // namespace troupe
