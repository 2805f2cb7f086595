#include "checkpoint_keeper.hpp"

#include "checkpoint_uploader.hpp"
#include "exceptions.hpp"

#include <troupe/file_system.hpp>
#include <troupe/memory_snapshot.hpp>
#include <troupe/retrying_store.hpp>
#include <troupe/s3.hpp>
#include <troupe/snapshot_directory.hpp>

#include <caf/all.hpp>

#include <algorithm>
#include <map>
#include <set>

namespace troupe {

namespace {

/// The keeper to itself: try again to write reports.
struct FlushDue {};

}  // namespace

}  // namespace troupe

CAF_ALLOW_UNSAFE_MESSAGE_TYPE(troupe::FlushDue)

namespace troupe {

namespace {

constexpr std::chrono::seconds flush_period{2};

struct KeeperState {
  static inline const char* name = "troupe.keeper";

  caf::event_based_actor* self = nullptr;
  caf::actor trainer;
  KeeperParts parts;
  std::unique_ptr<RunStorage> storage;
  RunConfig run;
  std::vector<CheckpointRecord> records;   // by index; saves that overlap may be committed in another order
  std::set<std::uint64_t> cannot_remove;  // the retention rule gave them up, the disk does not
  std::unique_ptr<SnapshotMemory> memory;
  bool keeps_snapshot = false;
  bool journal_failed = false;
  bool reports_wait = false, flush_due = false;  // for a disk that takes them

  // Only with an object store.
  std::shared_ptr<StoredRun> stored;
  caf::actor uploader;
  UploadQueue uploads;
  std::map<std::uint64_t, CheckpointKept> unannounced;  // under Sync: committed here, not yet in the store
  bool settling = false, finishing = false;

  // What ends the keeper early must not leave an upload running.
  ~KeeperState() {
    if (stored) stored->store->cancel();
  }

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

  bool has_sync_uploads() const { return stored && run.checkpoint.checkpoint_upload_mode == CheckpointUploadMode::Sync; }

  void open(const OpenRun& order) {
    run = order.run;
    if (!run.storage_path.is_url()) {
      storage = parts.open_storage(run, {});
      records = storage->found().checkpoints;
      tell_opened(storage->found());
    } else {
      open_from_store();
    }
  }

  void open_from_store() {
    const auto url = parse_store_url(run.storage_path.text());
    auto store = parts.open_store(run, [keeper = caf::actor_cast<caf::actor>(self)](const std::string& text) { caf::anon_send(keeper, RunWarning{text}); });
    store->check();
    BroughtDown found;
    storage = parts.open_storage(run, [&](const std::filesystem::path& directory) {
      const auto run_prefix = (url.prefix.empty() ? "" : url.prefix + "/") + directory.filename().string();
      stored = std::make_shared<StoredRun>(std::move(store), run_prefix, directory);
      if (run.resume == Resume::Never && !stored->remote.read().empty()) {
        throw Failure{Errc::AlreadyExists, "there is a run at " + stored->remote.url() + " already and resume is 'never'; choose another name, or remove it"};
      }
      found = bring_down(stored->remote, directory, run.checkpoint);
    });
    uploader = spawn_checkpoint_uploader(self->system(), caf::actor_cast<caf::actor>(self), stored);
    auto contents = storage->found();
    records = contents.checkpoints;
    for (const auto& record : found.remote) {
      uploads.know(record.index);
      if (std::none_of(records.begin(), records.end(), [&](const auto& here) { return here.index == record.index; })) records.push_back(record);
    }
    std::sort(records.begin(), records.end(), [](const auto& a, const auto& b) { return a.index < b.index; });
    uploads.remove_file("result.json");  // of the run before
    if (run.checkpoint.checkpoint_upload_mode != CheckpointUploadMode::NoUpload) {
      for (const auto index : found.to_upload) uploads.add(index);
    }
    contents.warnings.insert(contents.warnings.begin(), found.warnings.begin(), found.warnings.end());
    tell_opened(std::move(contents));
    upload_next();
  }

  void tell_opened(RunContents contents) {
    RunOpened news{storage->name(), storage->path().string(), std::move(contents), {}, {}};
    if (run.failure.max_failures != 0 && run.failure.snapshot_every > 0) {
      try {
        memory = parts.open_memory(run, storage->path());
        news.snapshots = {memory->path(), run.failure.snapshot_every};
        news.snapshot = memory->newest();
      } catch (const Failure& failure) {
        memory.reset();
        news.contents.warnings.push_back(std::string("no copies of the training state are kept in memory: ") + failure.what());
      }
    }
    self->send(trainer, std::move(news));
  }

  void settled() {
    try {
      storage->sweep();
    } catch (const Failure&) {
      // A thread that cannot be ended still writes there; the next sweep finds it.
    }
    std::optional<StateCopy> snapshot;
    try {
      if (memory) snapshot = memory->newest();
    } catch (const Failure& failure) {
      self->send(trainer, RunWarning{failure.what()});
    }
    self->send(trainer, RunSettled{std::move(snapshot)});
  }

  // A journal that cannot be written is no reason to end a run.
  void note(const std::string& json) {
    if (!storage) return;
    try {
      storage->note(json);
      journal_failed = false;
    } catch (const Failure& failure) {
      if (!std::exchange(journal_failed, true)) self->send(trainer, RunWarning{failure.what()});
    }
  }

  void keep(const std::vector<ReportRecord>& reports) {
    for (const auto& report : reports) storage->append(report);
    flush();
  }

  // Nor are reports that cannot be written now: they wait in memory until the disk takes them, at the latest at the run's end.
  void flush() {
    try {
      storage->flush();
      if (std::exchange(reports_wait, false)) self->send(trainer, RunWarning{"reports are written again to " + storage->path().string()});
    } catch (const Failure& failure) {
      if (failure.code() != Errc::StorageUnavailable) throw;
      if (!std::exchange(reports_wait, true)) self->send(trainer, RunWarning{std::string("reports wait in memory, training goes on: ") + failure.what()});
      if (!std::exchange(flush_due, true)) self->delayed_send(self, flush_period, FlushDue{});
    }
  }

  void flush_again() {
    flush_due = false;
    if (reports_wait && storage) flush();
  }

  // What stays in .staging hurts nobody, and is swept.
  void discard(const CompleteCheckpoint& checkpoint) {
    try {
      storage->discard(checkpoint);
    } catch (const Failure& failure) {
      self->send(trainer, RunWarning{failure.what()});
    }
  }

  // An old checkpoint that cannot be removed costs room, not the run. It is tried again after the next commit.
  bool try_remove(std::uint64_t index) {
    try {
      remove_here(index);
      cannot_remove.erase(index);
      return true;
    } catch (const Failure& failure) {
      if (cannot_remove.insert(index).second) {
        self->send(trainer, RunWarning{checkpoint_name(index) + " is not needed any more and cannot be removed: " + failure.what()});
      }
      return false;
    }
  }

  void commit(const CompleteCheckpoint& checkpoint) {
    CheckpointKept kept;
    try {
      kept.checkpoint = storage->commit(checkpoint);
    } catch (const Failure& failure) {
      if (failure.code() != Errc::StorageUnavailable) throw;
      discard(checkpoint);
      return self->send(trainer, CheckpointNotKept{checkpoint.index, failure.code(), failure.what()});
    }
    const auto index = kept.checkpoint.index;
    records.insert(std::ranges::upper_bound(records, index, {}, &CheckpointRecord::index), kept.checkpoint);
    if (stored && run.checkpoint.checkpoint_upload_mode != CheckpointUploadMode::NoUpload) uploads.add(index);
    for (const auto old : checkpoints_to_delete(records, run.checkpoint)) {
      if ((!stored || uploads.doom(old)) && !try_remove(old)) continue;
      std::erase_if(records, [&](const CheckpointRecord& record) { return record.index == old; });
      kept.removed.push_back(old);
    }
    if (has_sync_uploads()) {
      unannounced.emplace(index, std::move(kept));
    } else {
      self->send(trainer, std::move(kept));
    }
    upload_next();
  }

  // A checkpoint that only the store has is not here.
  void remove_here(std::uint64_t index) {
    if (stored && !std::filesystem::exists(storage->path() / checkpoint_name(index))) return;
    std::filesystem::create_directories(storage->path() / ".staging");  // gone when the run has ended but its uploads have not
    storage->remove(index);
  }

  void upload_next() {
    if (const auto job = uploads.next()) {
      self->send(uploader, DoUpload{*job});
    } else if (uploads.idle()) {
      if (std::exchange(settling, false)) settled();
      if (finishing) finished();
    }
  }

  void upload_ended(const UploadEnded& news) {
    for (const auto gone : uploads.ended(!news.problem)) try_remove(gone);
    const bool checkpoint = news.job.kind == UploadJob::Kind::Upload;
    if (news.problem && !(finishing && news.code == Errc::Cancelled)) {
      const auto what = checkpoint ? "the upload of " + checkpoint_name(news.job.index) + " failed: " : std::string{};
      if (checkpoint && has_sync_uploads()) {
        self->send(trainer, StorageFailed{news.code, what + *news.problem});
      } else {
        self->send(trainer, RunWarning{what + *news.problem});
      }
    } else if (checkpoint) {
      self->send(trainer, CheckpointUploaded{news.job.index, stored->remote.url() + "/" + checkpoint_name(news.job.index)});
    }
    if (checkpoint) announce(news.job.index, !news.problem);
    upload_next();
  }

  void announce(std::uint64_t index, bool stored_whole) {
    const auto waiting = unannounced.extract(index);
    if (!waiting.empty() && stored_whole) self->send(trainer, waiting.mapped());
  }

  // What explains a failure must not become another.
  void keep_post_mortem(const KeepPostMortem& page) {
    try {
      for (const auto& [ending, text] : {std::pair{".md", &page.markdown}, std::pair{".json", &page.json}}) {
        storage->write(page.name + ending, *text);
        if (stored) uploads.put_file(page.name + ending);
      }
      if (stored) upload_next();
    } catch (const std::exception& error) {
      self->send(trainer, RunWarning{page.name + " could not be written: " + error.what()});
    }
  }

  void settle() {
    if (has_sync_uploads() && !uploads.idle()) {
      settling = true;
    } else {
      settled();
    }
  }

  void finish(const Result& result, bool keep_snapshot) {
    storage->finish(result);
    keeps_snapshot = keep_snapshot;
    if (!stored) return finished();
    // A last try for the newest, if it failed.
    if (!records.empty() && uploads.failed().contains(records.back().index)) uploads.add(records.back().index);
    for (const auto* file : {"reports.jsonl", "result.json"}) uploads.put_file(file);
    finishing = true;
    self->delayed_send(self, run.upload_timeout, GiveUpUploads{});
    upload_next();
  }

  void give_up_uploads() {
    const int waiting = uploads.give_up();
    self->send(trainer, RunWarning{"uploads to " + stored->remote.url() + " have not ended and are given up (" + std::to_string(waiting) + " checkpoints not begun); what is missing there is in " +
                                   stored->directory.string() + " and goes up when the run is resumed"});
    stored->store->cancel();  // what is under way ends now
    upload_next();
  }

  void finished() {
    if (memory && !keeps_snapshot) memory->remove();
    memory.reset();
    storage.reset();  // the lock is free before anyone hears of the end
    self->send(trainer, RunFinished{});
    self->quit();
  }
};

caf::behavior keeper_behavior(caf::stateful_actor<KeeperState>* self, const caf::actor& trainer, KeeperParts parts) {
  auto& state = self->state;
  state.self = self;
  state.trainer = trainer;
  state.parts = std::move(parts);
  keep_exceptions(self);
  self->link_to(trainer);
  self->set_exit_handler([self, &state](const caf::exit_msg& exit) {
    const bool normal = !exit.reason || exit.reason == caf::exit_reason::normal;
    if (normal && exit.source != state.trainer) return;
    if (state.stored) state.stored->store->cancel();
    self->quit(exit.reason);  // told to by another, the Trainer sees that it was no normal end
  });
  return {
      [&state](const OpenRun& order) { state.guarded([&] { state.open(order); }); },
      [&state](const KeepReports& order) { state.guarded([&] { state.keep(order.reports); }); },
      [&state](const KeepEvent& order) { state.note(order.json); },
      [&state](const CommitCheckpoint& order) { state.guarded([&] { state.commit(order.checkpoint); }); },
      [&state](const DiscardCheckpoint& order) { state.discard(order.checkpoint); },
      [&state](const KeepPostMortem& order) {
        if (state.storage) state.keep_post_mortem(order);
      },
      [&state](FlushDue) { state.guarded([&] { state.flush_again(); }); },
      [&state](SettleRun) { state.settle(); },
      [&state](const FinishRun& order) { state.guarded([&] { state.finish(order.result, order.keep_snapshot); }); },
      [&state](const UploadEnded& news) { state.upload_ended(news); },
      [&state](const RunWarning& news) { state.self->send(state.trainer, news); },
      [&state](GiveUpUploads) {
        if (state.finishing) state.give_up_uploads();
      },
  };
}

}  // namespace

std::unique_ptr<ObjectStore> open_run_store(const RunConfig& run, std::function<void(const std::string&)> warn) {
  RetryPolicy policy;
  policy.deadline = run.upload_timeout;
  return with_retries(open_s3_store(parse_store_url(run.storage_path.text())), policy, make_store_clock(), [warn = std::move(warn)](const StoreRetry& retry) {
    if (retry.tries == 3) warn(retry.text + "; it is tried again");  // shorter troubles are nobody's concern
  });
}

std::unique_ptr<SnapshotMemory> open_snapshot_memory(const RunConfig& run, const std::filesystem::path& directory) {
  class Memory final : public SnapshotMemory {
   public:
    Memory(const std::filesystem::path& place, const std::filesystem::path& of) : directory_(place, of) {}
    std::filesystem::path path() const override { return directory_.path(); }
    std::optional<StateCopy> newest() const override {
      const auto found = find_snapshot(directory_.path());
      if (!found) return std::nullopt;
      return StateCopy{found->path, found->world_size, found->reports, found->steps};
    }
    void remove() noexcept override { directory_.remove(); }

   private:
    SnapshotDirectory directory_;
  };
  return std::make_unique<Memory>(run.failure.snapshot_path, directory);
}

std::unique_ptr<RunStorage> open_run_storage(const RunConfig& run, const std::function<void(const std::filesystem::path&)>& before_reading) {
  return std::make_unique<RunStorage>(run, before_reading);
}

caf::actor spawn_checkpoint_keeper(caf::actor_system& system, caf::actor trainer) {
  return spawn_checkpoint_keeper_with(system, std::move(trainer), {});
}

caf::actor spawn_checkpoint_keeper_with(caf::actor_system& system, caf::actor trainer, KeeperParts parts) {
  const bool own_thread = parts.own_thread;
  return own_thread ? system.spawn<caf::detached>(keeper_behavior, std::move(trainer), std::move(parts))
                    : system.spawn(keeper_behavior, std::move(trainer), std::move(parts));
}

}  // namespace troupe
