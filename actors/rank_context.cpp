#include "rank_context.hpp"

#include <algorithm>

namespace troupe {

namespace {

constexpr std::size_t max_broadcast_bytes = std::size_t{1} << 20;
constexpr std::chrono::milliseconds progress_period{100};

}  // namespace

RankContext::RankContext(RunRank run, std::shared_ptr<RankChannel> channel, std::shared_ptr<Communicator> seat, std::shared_ptr<KeptObjects> kept,
                         RankDatasets datasets)
    : run_(std::move(run)),
      channel_(std::move(channel)),
      seat_(std::move(seat)),
      kept_(std::move(kept)),
      datasets_(std::move(datasets)),
      next_report_(run_.first_report_index) {
  if (!run_.chaos.empty()) chaos_.emplace(run_, channel_->box());
  if (!run_.scaling.use_gpu) return;
  plugin_ = load_gpus(run_.gpu < 0 ? run_.local_world_size : run_.gpu + 1);
  gpu_ = open_rank_gpu(*plugin_, *seat_, device().index, run_.barrier_timeout);
}

Device RankContext::device() const noexcept {
  return run_.scaling.use_gpu ? Device{Device::Kind::Cuda, run_.gpu < 0 ? run_.local_rank : run_.gpu} : Device{};
}

void RankContext::report(const Metrics& metrics, const std::optional<Checkpoint>& checkpoint) {
  const int num_writers = checkpoint ? checkpoint->num_writers() : 1;
  if (num_writers < 1 || num_writers > run_.world_size) {
    throw Failure{Errc::InvalidArgument, "report: the checkpoint's num_writers is " + std::to_string(num_writers) +
                                             "; it must be from 1 to the world size, " + std::to_string(run_.world_size)};
  }
  const auto index = next_report_;
  const auto save = checkpoint ? checkpoint->pending() : nullptr;
  Reported reported{run_.attempt, run_.rank, index, metrics, std::nullopt, num_writers, save != nullptr};
  if (checkpoint) reported.checkpoint = std::filesystem::absolute(checkpoint->path()).string();
  channel_->send(std::move(reported));
  if (auto* box = channel_->box()) box->note(EventKind::Report, index, checkpoint ? "with checkpoint" : "", {}, std::chrono::steady_clock::now());
  ++next_report_;
  if (!save) return;
  std::erase_if(saves_, [](const auto& known) { return known.second->done(); });
  saves_.emplace_back(index, save);
  save->when_done([channel = channel_, attempt = run_.attempt, rank = run_.rank, index](const Outcome& outcome) {
    channel->post(CheckpointWritten{attempt, rank, index, outcome.code(), outcome.text()});
  });
}

void RankContext::finish_saves() {
  const WaitMark mark{WaitingIn::Save};
  const auto deadline = std::chrono::steady_clock::now() + run_.barrier_timeout;
  for (const auto& [index, save] : saves_) {
    (void)save->wait(deadline);  // how it ended is news of its own
    if (!save->done()) {
      throw Failure{Errc::DeadlinePassed, "the checkpoint of report " + std::to_string(index) + " was not written within " +
                                              std::to_string(run_.barrier_timeout.count() / 1000) + " s of the train function's end"};
    }
  }
  saves_.clear();
}

void RankContext::progress(const Progress& progress) {
  const auto now = std::chrono::steady_clock::now();
  if (now < next_progress_) return;
  next_progress_ = now + progress_period;
  auto told = progress;
  const std::chrono::duration<double> waited = std::exchange(waited_, {}), passed = now - std::exchange(last_progress_, now);
  if (passed.count() > 0) told.data_wait = std::min(1.0, waited.count() / passed.count());
  channel_->try_send(Progressed{run_.attempt, run_.rank, told});
}

std::filesystem::path RankContext::checkpoint_dir() {
  const auto name = "attempt_" + std::to_string(run_.attempt) + "_rank_" + std::to_string(run_.rank) + "_" +
                    std::to_string(next_directory_++);
  auto directory = std::filesystem::path(run_.run_directory) / ".staging" / name;
  std::error_code error;
  std::filesystem::remove_all(directory, error);
  std::filesystem::create_directories(directory, error);
  if (error) throw Failure{Errc::StorageUnavailable, "cannot make " + directory.string() + ": " + error.message()};
  return directory;
}

std::filesystem::path RankContext::shared_checkpoint_dir() {
  const auto name = "attempt_" + std::to_string(run_.attempt) + "_shared_" + std::to_string(next_shared_directory_++);
  auto directory = std::filesystem::path(run_.run_directory) / ".staging" / name;
  std::error_code error;
  std::filesystem::create_directories(directory, error);
  if (error) throw Failure{Errc::StorageUnavailable, "cannot make " + directory.string() + ": " + error.message()};
  return directory;
}

std::optional<Checkpoint> RankContext::get_checkpoint() const {
  if (!run_.resume_checkpoint) return std::nullopt;
  return Checkpoint{*run_.resume_checkpoint};
}

std::string RankContext::broadcast_from_rank_zero(std::string bytes) {
  if (run_.rank != 0) return wait_for_all({});
  if (bytes.size() > max_broadcast_bytes) {
    throw Failure{Errc::InvalidArgument, "broadcast_from_rank_zero: " + std::to_string(bytes.size()) +
                                             " bytes; at most 1 MiB goes over the actors, tensors go over communicator()"};
  }
  return wait_for_all(std::move(bytes));
}

std::string RankContext::wait_for_all(std::string bytes) {
  return channel_->pass_barrier({run_.attempt, run_.rank, next_barrier_++, std::move(bytes)});
}

}  // namespace troupe
