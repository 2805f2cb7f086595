#include "checkpoint_uploader.hpp"

#include <troupe/run_storage.hpp>

#include <caf/all.hpp>

namespace troupe {

namespace {

struct UploaderState {
  static inline const char* name = "troupe.uploader";
};

void carry_out(StoredRun& run, const UploadJob& job) {
  switch (job.kind) {
    case UploadJob::Kind::Upload:
      return run.remote.upload_checkpoint(run.directory / checkpoint_name(job.index));
    case UploadJob::Kind::Remove:
      return run.remote.remove_checkpoint(checkpoint_name(job.index));
    case UploadJob::Kind::PutFile:
      return run.remote.upload_file(run.directory / job.file);
    case UploadJob::Kind::RemoveFile:
      return run.remote.remove_file(job.file);
  }
}

UploadEnded answer(StoredRun& run, const UploadJob& job) {
  try {
    carry_out(run, job);
    return {job, std::nullopt, Errc::Ok};
  } catch (const Failure& failure) {
    return {job, failure.what(), failure.code()};
  } catch (const std::exception& error) {
    return {job, error.what(), Errc::StorageUnavailable};
  }
}

}  // namespace

caf::actor spawn_checkpoint_uploader(caf::actor_system& system, caf::actor keeper, std::shared_ptr<StoredRun> run) {
  return system.spawn<caf::detached>([keeper = std::move(keeper), run = std::move(run)](caf::stateful_actor<UploaderState>* self) -> caf::behavior {
    self->link_to(keeper);
    self->set_exit_handler([self](const caf::exit_msg&) { self->quit(); });
    return {[self, keeper, run](const DoUpload& order) { self->send(keeper, answer(*run, order.job)); }};
  });
}

}  // namespace troupe
