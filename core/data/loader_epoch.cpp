#include "loader_epoch.hpp"

#include <algorithm>
#include <troupe/black_box.hpp>
#include <utility>

namespace troupe {

DataLoader::Iterator::Epoch::Epoch(std::unique_ptr<BatchPipe> pipe, Facts facts, LoaderPosition start, std::shared_ptr<LoaderShared> shared,
                                   Clock::time_point begun)
    : facts_(std::move(facts)),
      position_(std::move(start)),
      shared_(std::move(shared)),
      looks_ahead_(!facts_.size || shared_->transfer),
      begun_(begun),
      pipe_(std::move(pipe)) {
  if (facts_.size) {
    position_.num_batches = std::min(position_.num_batches, *facts_.size);
    std::erase_if(position_.ahead, [&](auto number) { return number < position_.num_batches || number >= *facts_.size; });
    left_ = *facts_.size - position_.num_batches - std::ssize(position_.ahead);
  }
  for (const auto number : position_.ahead) later_[number] = {facts_.samples_after(number + 1), {}};
  consumed_ = facts_.samples_after(position_.num_batches);
  shared_->current = this;
  shared_->state = {false, facts_.remainder};
  shared_->stats = {};
  shared_->position = position_;
  shared_->consumed = consumed_;
  shared_->next = {position_.epoch};  // batches are skipped once
}

DataLoader::Iterator::Epoch::~Epoch() {
  if (!is_current()) return;
  shared_->current = nullptr;
  shared_->batch.clear();
  shared_->state = {};
}

std::optional<DataLoader::Iterator::Epoch::Ahead> DataLoader::Iterator::Epoch::fetch() {
  auto loaded = pipe_->next();
  if (!loaded) return std::nullopt;
  Ahead ahead{std::move(loaded->meta), std::move(loaded->batch), {}};
  if (shared_->transfer) ahead.arrived = shared_->transfer(std::exchange(ahead.batch, {}));
  return ahead;
}

void DataLoader::Iterator::Epoch::look_ahead() {
  try {
    ahead_ = fetch();
  } catch (...) {
    ahead_.reset();
    ahead_error_ = std::current_exception();
  }
}

std::optional<Batch> DataLoader::Iterator::Epoch::next() {
  auto from = first_ ? Clock::now() : begun_;
  if (looks_ahead_ && !std::exchange(fetched_, true)) look_ahead();
  if (ahead_error_) std::rethrow_exception(std::exchange(ahead_error_, nullptr));
  const bool more = looks_ahead_ ? ahead_.has_value() : left_ > 0;
  auto waited = Clock::now() - from;
  if (const auto asked = shared_->asked) asked(more);
  mark_phase(StepPhase::Data);
  from = Clock::now();
  std::optional<Ahead> taken;
  if (more && looks_ahead_) {
    taken = std::move(ahead_);
    look_ahead();
  } else if (more) {
    taken = fetch();
  }
  if (!taken) {
    finish();
    return std::nullopt;
  }
  auto batch = taken->arrived ? taken->arrived() : std::move(taken->batch);
  const auto now = Clock::now();
  waited += now - from;
  handed_out(taken->meta);
  if (is_current()) {
    auto& stats = shared_->stats;
    ++stats.num_batches;
    stats.num_samples += taken->meta.indices.empty() ? batch.batch_size() : std::ssize(taken->meta.indices);
    if (first_) stats.wait += waited;
    else stats.first_wait = waited;
    stats.elapsed = now - first_.value_or(now);
    shared_->batch = std::move(taken->meta.indices);
  }
  if (!first_) first_ = now;
  mark_phase(StepPhase::Forward);
  return batch;
}

void DataLoader::Iterator::Epoch::handed_out(const BatchMeta& meta) {
  --left_;
  later_[meta.number] = {meta.samples_after, meta.stream};
  while (!later_.empty() && later_.begin()->first == position_.num_batches) {
    ++position_.num_batches;
    std::tie(consumed_, position_.stream) = std::move(later_.begin()->second);
    later_.erase(later_.begin());
  }
  position_.ahead.clear();
  for (const auto& [number, after] : later_) position_.ahead.push_back(number);
  if (!is_current()) return;
  if (shared_->position) {
    shared_->position = position_;
    shared_->consumed = consumed_;
  }
  const bool last = looks_ahead_ ? !ahead_ && !ahead_error_ : left_ == 0;
  shared_->state.end_of_dataloader = last;
  if (last) shared_->state.remainder = meta.remainder;
}

/// An epoch counts when its end is reached, unless the user has set another start meanwhile.
void DataLoader::Iterator::Epoch::finish() {
  if (!is_current()) return;
  if (first_) shared_->stats.elapsed = Clock::now() - *first_;
  if (!shared_->position) return;
  shared_->position.reset();
  shared_->next = {position_.epoch + 1};
}

}  // namespace troupe
