#include "checkpoint_keeper.hpp"

#include <caf/all.hpp>

namespace troupe {

namespace {

struct KeeperState {
  static inline const char* name = "troupe.keeper";

  caf::event_based_actor* self = nullptr;
  caf::actor trainer;
  std::unique_ptr<RunStorage> storage;
  RunConfig run;
  std::vector<CheckpointRecord> records;

  // Runs disk work; what it throws becomes news.
  template <class F>
  void guarded(F&& work) {
    try {
      work();
    } catch (const Failure& failure) {
      self->send(trainer, StorageFailed{failure.code(), failure.what()});
    } catch (const std::exception& error) {
      self->send(trainer, StorageFailed{Errc::StorageUnavailable, error.what()});
    }
  }

  void open(const OpenRun& order) {
    run = order.run;
    storage = std::make_unique<RunStorage>(run);
    records = storage->found().checkpoints;
    self->send(trainer, RunOpened{storage->name(), storage->path().string(), storage->found()});
  }

  void keep(const std::vector<ReportRecord>& reports) {
    for (const auto& report : reports) storage->append(report);
    storage->flush();
  }

  void commit(const CompleteCheckpoint& checkpoint) {
    CheckpointKept kept;
    try {
      kept.checkpoint = storage->commit(checkpoint);
    } catch (const Failure& failure) {
      if (failure.code() != Errc::StorageUnavailable) throw;
      storage->discard(checkpoint);
      return self->send(trainer, CheckpointNotKept{checkpoint.index, failure.code(), failure.what()});
    }
    records.push_back(kept.checkpoint);
    for (const auto index : checkpoints_to_delete(records, run.checkpoint)) {
      storage->remove(index);
      std::erase_if(records, [&](const CheckpointRecord& record) { return record.index == index; });
      kept.removed.push_back(index);
    }
    self->send(trainer, std::move(kept));
  }

  void finish(const Result& result) {
    storage->finish(result);
    storage.reset();  // the lock is free before anyone hears of the end
    self->send(trainer, RunFinished{});
  }
};

caf::behavior keeper_behavior(caf::stateful_actor<KeeperState>* self, const caf::actor& trainer) {
  auto& state = self->state;
  state.self = self;
  state.trainer = trainer;
  self->link_to(trainer);
  self->set_exit_handler([self](const caf::exit_msg&) { self->quit(); });
  return {
      [&state](const OpenRun& order) { state.guarded([&] { state.open(order); }); },
      [&state](const KeepReports& order) { state.guarded([&] { state.keep(order.reports); }); },
      [&state](const CommitCheckpoint& order) { state.guarded([&] { state.commit(order.checkpoint); }); },
      [&state](const DiscardCheckpoint& order) { state.guarded([&] { state.storage->discard(order.checkpoint); }); },
      [&state](SettleRun) { state.self->send(state.trainer, RunSettled{}); },
      [self, &state](const FinishRun& order) {
        state.guarded([&] { state.finish(order.result); });
        self->quit();
      },
  };
}

}  // namespace

caf::actor spawn_checkpoint_keeper(caf::actor_system& system, caf::actor trainer) {
  return system.spawn<caf::detached>(keeper_behavior, std::move(trainer));
}

}  // namespace troupe
