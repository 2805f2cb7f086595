#include "checkpoint_keeper.hpp"

#include <caf/all.hpp>

namespace troupe {

namespace {

/// The keeper to itself: reports wait to be written.
struct FlushDue {};

}  // namespace

}  // namespace troupe

CAF_ALLOW_UNSAFE_MESSAGE_TYPE(troupe::FlushDue)

namespace troupe {

namespace {

// Reports reach the file in batches: a line that waits this long costs nothing, a write for each line would.
constexpr std::chrono::milliseconds flush_period{50};

struct KeeperState {
  static inline const char* name = "troupe.keeper";

  caf::event_based_actor* self = nullptr;
  caf::actor trainer;
  std::unique_ptr<RunStorage> storage;
  RunConfig run;
  std::vector<CheckpointRecord> records;
  bool flush_set = false;

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

  void keep(const ReportRecord& report) {
    storage->append(report);
    if (flush_set) return;
    flush_set = true;
    self->delayed_send(self, flush_period, FlushDue{});
  }

  void commit(const CompleteCheckpoint& checkpoint) {
    storage->flush();
    CheckpointKept kept{storage->commit(checkpoint), {}};
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
      [&state](const KeepReport& order) { state.guarded([&] { state.keep(order.report); }); },
      [&state](const CommitCheckpoint& order) { state.guarded([&] { state.commit(order.checkpoint); }); },
      [&state](SettleRun) {
        state.guarded([&] { state.storage->flush(); });
        state.self->send(state.trainer, RunSettled{});
      },
      [&state](FlushDue) {
        state.flush_set = false;
        state.guarded([&] { state.storage->flush(); });
      },
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
