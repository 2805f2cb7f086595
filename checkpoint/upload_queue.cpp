#include <troupe/upload_queue.hpp>

#include <algorithm>
#include <utility>

namespace troupe {

using Kind = UploadJob::Kind;

void UploadQueue::add(std::uint64_t index) {
  failed_.erase(index);
  put_file("reports.jsonl");
  jobs_.push_back({Kind::Upload, index, {}});
}

void UploadQueue::put_file(const std::string& file) {
  const UploadJob job{Kind::PutFile, 0, file};
  std::erase(jobs_, job);  // once, with what it holds then
  jobs_.push_back(job);
}

bool UploadQueue::doom(std::uint64_t index) {
  failed_.erase(index);
  if (std::erase(jobs_, UploadJob{Kind::Upload, index, {}}) > 0) return true;
  if (under_way_ && under_way_->kind == Kind::Upload && under_way_->index == index) {
    doomed_under_way_ = true;
    return false;
  }
  if (stored_.erase(index) > 0) held_back_.push_back(index);
  const auto is_upload = [](const UploadJob& job) { return job.kind == Kind::Upload; };
  const bool upload_comes = std::any_of(jobs_.begin(), jobs_.end(), is_upload) || (under_way_ && is_upload(*under_way_));
  // Nothing newer is on its way: the newest is in the store, or its upload has failed and the old one must stay.
  if (!upload_comes && failed_.empty()) {
    for (const auto held : std::exchange(held_back_, {})) jobs_.push_back({Kind::Remove, held, {}});
  }
  return true;
}

std::optional<UploadJob> UploadQueue::next() {
  if (under_way_ || jobs_.empty()) return std::nullopt;
  under_way_ = jobs_.front();
  jobs_.pop_front();
  return under_way_;
}

std::vector<std::uint64_t> UploadQueue::ended(bool ok) {
  const auto job = *std::exchange(under_way_, std::nullopt);
  if (job.kind != Kind::Upload) return {};
  if (ok) {
    stored_.insert(job.index);
    for (const auto held : std::exchange(held_back_, {})) jobs_.push_back({Kind::Remove, held, {}});
  } else {
    failed_.insert(job.index);
  }
  if (!std::exchange(doomed_under_way_, false)) return {};
  failed_.erase(job.index);
  if (stored_.erase(job.index) > 0) held_back_.push_back(job.index);
  return {job.index};
}

int UploadQueue::give_up() {
  const auto waiting = std::count_if(jobs_.begin(), jobs_.end(), [](const UploadJob& job) { return job.kind == Kind::Upload; });
  jobs_.clear();
  held_back_.clear();
  return static_cast<int>(waiting);
}

}  // namespace troupe
