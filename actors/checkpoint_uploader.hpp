#pragma once

#include <troupe/remote_run.hpp>
#include <troupe/upload_queue.hpp>

#include <caf/actor.hpp>
#include <caf/allowed_unsafe_message_type.hpp>
#include <caf/fwd.hpp>

#include <filesystem>
#include <memory>
#include <optional>
#include <string>

namespace troupe {

/// A run's store, and what is known of the run in it. Shared by keeper and uploader.
struct StoredRun {
  StoredRun(std::unique_ptr<ObjectStore> opened, std::string prefix, std::filesystem::path run_directory)
      : store(std::move(opened)), remote(*store, std::move(prefix)), directory(std::move(run_directory)) {}

  std::unique_ptr<ObjectStore> store;
  RemoteRun remote;
  std::filesystem::path directory;
};

/// Keeper to uploader: do it. Answered by UploadEnded.
struct DoUpload {
  UploadJob job;
};

/// Uploader to keeper. `problem`: why it failed, with what to do.
struct UploadEnded {
  UploadJob job;
  std::optional<std::string> problem;
  Errc code = Errc::Ok;
};

/// Spawns the actor that talks to the object store, on a thread of its own. It is linked to `keeper`.
[[nodiscard]] caf::actor spawn_checkpoint_uploader(caf::actor_system& system, caf::actor keeper, std::shared_ptr<StoredRun> run);

}  // namespace troupe

CAF_ALLOW_UNSAFE_MESSAGE_TYPE(troupe::DoUpload)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(troupe::UploadEnded)
