#include "commit.hpp"
#include "files.hpp"
#include "line_file.hpp"

#include <troupe/records.hpp>
#include <troupe/run_storage.hpp>

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <ctime>
#include <nlohmann/json.hpp>

namespace troupe {

namespace {

namespace fs = std::filesystem;

// JSON text of bytes that may be no UTF-8 (what a rank printed, a metric's value).
std::string dump(const nlohmann::ordered_json& json, int indent) {
  return json.dump(indent, ' ', false, nlohmann::ordered_json::error_handler_t::replace);
}

std::string generated_name() {
  const auto now = std::time(nullptr);
  std::tm local{};
  localtime_r(&now, &local);
  char text[64];
  std::strftime(text, sizeof text, "troupe_run-%Y-%m-%d_%H-%M-%S-", &local);
  return text + std::to_string(getpid());
}

fs::path choose_path(const RunConfig& run) {
  const auto storage = fs::absolute(local_storage_path(run)).lexically_normal();
  if (!run.name.empty()) return storage / run.name;
  auto path = storage / generated_name();
  for (int copy = 2; fs::exists(path); ++copy) path = storage / (generated_name() + "-" + std::to_string(copy));
  return path;
}

void refuse_what_resume_forbids(const RunConfig& run, const fs::path& path, const RunContents& found) {
  const bool exists = !found.history.empty() || !found.checkpoints.empty() || fs::exists(path / "result.json");
  if (run.resume == Resume::Never && exists) {
    throw Failure{Errc::AlreadyExists, "there is a run at " + path.string() +
                                           " already and resume is 'never'; choose another name, or remove it"};
  }
  if (run.resume == Resume::Must && found.checkpoints.empty()) {
    throw Failure{Errc::NotFound, "resume is 'must', but " + path.string() + " holds no committed checkpoint"};
  }
}

}  // namespace

struct RunStorage::Lines {
  detail::LineFile reports, journal;
};

RunStorage::RunStorage(fs::path path, RunContents found) : path_(std::move(path)), found_(std::move(found)) {}

RunStorage::RunStorage(const RunConfig& run, const std::function<void(const fs::path&)>& before_reading) : path_(choose_path(run)) {
  // Under `must` nothing is made: a wrong name leaves no empty directory behind.
  if (run.resume == Resume::Must && !run.storage_path.is_url() && !fs::is_directory(path_)) refuse_what_resume_forbids(run, path_, {});
  files::make_directories(path_);
  lock();
  try {
    if (before_reading) before_reading(path_);
    found_ = read_run(path_);
    refuse_what_resume_forbids(run, path_, found_);
    detail::sweep_staging(real_file_system(), path_);
    lines_ = std::make_unique<Lines>(Lines{detail::LineFile{path_ / "reports.jsonl"}, detail::LineFile{path_ / "journal.jsonl"}});
    std::error_code error;
    fs::remove(path_ / "result.json", error);  // of the run before; this one has not ended
  } catch (...) {
    ::close(lock_fd_);
    throw;
  }
}

RunStorage::~RunStorage() {
  try {
    RunStorage::flush();
  } catch (const Failure&) {
    // The caller has flushed, or has been told why that fails.
  }
  if (lock_fd_ >= 0) ::close(lock_fd_);
}

void RunStorage::lock() {
  const auto file = path_ / ".lock";
  lock_fd_ = ::open(file.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
  if (lock_fd_ < 0) files::fail("open", file, errno);
  if (::flock(lock_fd_, LOCK_EX | LOCK_NB) != 0) {
    const int why = errno;
    char pid[32] = {};
    const auto length = ::pread(lock_fd_, pid, sizeof pid - 1, 0);
    ::close(lock_fd_);
    if (why != EWOULDBLOCK) files::fail("lock", file, why);
    throw Failure{Errc::AlreadyExists, "the run at " + path_.string() + " is being driven by process " +
                                           std::string(pid, length > 0 ? static_cast<std::size_t>(length) : 0) +
                                           "; wait for it or choose another name"};
  }
  const auto pid = std::to_string(getpid());
  if (::ftruncate(lock_fd_, 0) != 0 || ::pwrite(lock_fd_, pid.data(), pid.size(), 0) < 0) {
    files::fail("write", file, errno);
  }
}

std::string checkpoint_name(std::uint64_t index) {
  char name[40];
  std::snprintf(name, sizeof name, "checkpoint_%06llu", static_cast<unsigned long long>(index));
  return name;
}

void RunStorage::append(const ReportRecord& record) {
  if (lines_) lines_->reports.append(dump(to_json(record), -1));
}

void RunStorage::flush() {
  if (lines_) lines_->reports.flush();
}

void RunStorage::note(const std::string& json) {
  if (!lines_) return;
  if (lines_->journal.bytes_waiting() < (std::size_t{1} << 20)) lines_->journal.append(json);
  lines_->journal.flush();
}

void RunStorage::write(const std::string& name, const std::string& text) { files::write_atomically(path_ / name, text); }

CheckpointRecord RunStorage::commit(const CompleteCheckpoint& checkpoint) {
  return detail::commit_checkpoint(real_file_system(), path_, checkpoint);
}

void RunStorage::discard(const CompleteCheckpoint& checkpoint) { detail::discard_checkpoint(real_file_system(), path_, checkpoint); }

void RunStorage::remove(std::uint64_t index) { detail::remove_checkpoint(real_file_system(), path_, index); }

void RunStorage::sweep() { detail::sweep_staging(real_file_system(), path_); }

void RunStorage::finish(const Result& result) {
  RunStorage::flush();
  if (lines_) lines_->reports.sync();
  files::write_atomically(path_ / "result.json", dump(to_json(result), 1) + "\n");
  std::error_code error;
  fs::remove_all(path_ / ".staging", error);
}

}  // namespace troupe
