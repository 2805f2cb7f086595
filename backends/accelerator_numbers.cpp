// Losses and gradients that are not finite.
#include "accelerator_impl.hpp"

#include <troupe/errors.hpp>

#include <algorithm>
#include <cmath>
#include <iostream>
#include <sstream>

namespace troupe {

namespace {

using Policy = BadNumbers::Policy;

/// "3, 17, 4 and 12 more"
std::string list_of(const std::vector<std::int64_t>& samples) {
  constexpr std::size_t most = 64;
  std::ostringstream text;
  for (std::size_t i = 0; i < std::min(samples.size(), most); ++i) text << (i ? ", " : "") << samples[i];
  if (samples.size() > most) text << " and " << samples.size() - most << " more";
  return text.str();
}

}  // namespace

bool Accelerator::Impl::looks_at_numbers() const noexcept { return options.bad_numbers.policy != Policy::Ignore && local_depth == 0 && !joining; }

void Accelerator::Impl::note_loss(const at::Tensor& loss) {
  if (!looks_at_numbers()) return;
  const auto value = loss.item<double>();
  if (!std::isfinite(value) && !std::exchange(numbers.bad_loss, true)) numbers.loss = value;
  for (const auto& l : loaders) {
    if (!boundary.asked.contains(l.id)) continue;
    const auto& batch = l.loader->batch_indices();
    numbers.samples.insert(numbers.samples.end(), batch.begin(), batch.end());
  }
}

void Accelerator::Impl::act_on(Found found) {
  const auto& bad = options.bad_numbers;
  const auto why = found == Nothing ? std::string{} : describe_bad();
  numbers.bad_loss = false;
  numbers.samples.clear();
  if (found == Nothing) {
    numbers.in_a_row = 0;
    return;
  }
  gate->skip = true;
  ++numbers.counts.skipped;
  const bool too_many = ++numbers.in_a_row > bad.max_in_a_row;
  if (bad.policy == Policy::Halt || too_many) {
    const auto rest = too_many && bad.policy != Policy::Halt ? "; these are more than " + std::to_string(bad.max_in_a_row) + " bad updates in a row" : std::string{};
    throw Failure{Errc::DataMalformed, "backward: " + why + rest};
  }
  if (bad.policy == Policy::RollBack) return roll_back(why);
  if (communicator.rank() == 0) std::cerr << "backward: " + why + "; the update is skipped\n";
}

std::string Accelerator::Impl::describe_bad() {
  std::ostringstream mine;
  mine << (numbers.bad_loss ? "loss is " + std::to_string(numbers.loss) : "loss is finite");
  if (!numbers.samples.empty()) mine << " (samples " << list_of(numbers.samples) << " of the data set)";
  const auto all = communicator.size() == 1 ? std::vector{mine.str()} : detail::all_gather_bytes(communicator, mine.str());
  const bool losses = std::ranges::any_of(all, [](const auto& text) { return !text.starts_with("loss is finite"); });
  std::ostringstream text;
  text << "update " << train_step() + 1 << " of rank";
  const char* between = " ";
  if (!losses) text << "s has gradients that are not finite:";
  for (std::size_t r = 0; r < all.size(); ++r) {
    if (losses && all[r].starts_with("loss is finite")) continue;
    text << between << (losses ? std::to_string(r) + ": its " : "rank " + std::to_string(r) + "'s ") << all[r];
    between = losses ? "; of rank " : "; ";
  }
  return text.str();
}

void Accelerator::Impl::roll_back(const std::string& why) {
  auto& s = snapshots;
  const auto now = train_step();
  std::vector<SnapshotInfo> whole;
  if (s.writer) whole = s.writer->whole();
  const auto is_old_enough = [&](const SnapshotInfo& info) { return info.steps <= now - options.bad_numbers.roll_back_steps; };
  const auto found = std::ranges::find_if(whole, is_old_enough);
  std::int64_t number = found == whole.end() ? 0 : static_cast<std::int64_t>(found->number);
  if (communicator.size() > 1) communicator.broadcast({&number, sizeof number, DType::I64}, 0).wait().or_throw();
  if (number == 0) {
    std::string have;
    for (const auto& info : whole) have += (have.empty() ? "" : " and ") + std::to_string(info.steps);
    throw Failure{Errc::InvalidArgument, "backward: " + why + "; there is no snapshot in memory of update " +
                                             std::to_string(now - options.bad_numbers.roll_back_steps) + " or before to roll back to (" +
                                             (have.empty() ? "none at all" : "those of updates " + have) +
                                             "). Take them at least every roll_back_steps = " + std::to_string(options.bad_numbers.roll_back_steps) +
                                             " updates back (FailureConfig::snapshot_every), or catch this in the loop, load_state a checkpoint and begin the epoch's loop again"};
  }
  const auto chosen = std::ranges::find(whole, static_cast<std::uint64_t>(number), &SnapshotInfo::number);
  if (chosen == whole.end()) throw Failure{Errc::Internal, "backward: rank 0 rolls back to snapshot " + std::to_string(number) + ", which this rank does not see"};
  (void)load(chosen->path, {}, /*keep_loaders=*/true);
  gate->skip = true;  // what is left of this step does nothing
  ++numbers.counts.rolled_back;
  if (communicator.rank() == 0) std::cerr << "backward: " + why + "; the state is that of update " + std::to_string(chosen->steps) + " again, data go on\n";
}

Outcome Accelerator::Impl::savable_numbers(const CheckpointPart& part) const {
  if (options.bad_numbers.policy == Policy::Ignore) return {};
  const auto* culprit = find_not_finite(part);
  if (!culprit) return {};
  return {Errc::InvalidArgument, "rank " + std::to_string(communicator.rank()) + ": " + culprit->name +
                                     " holds infinity or what is no number: no checkpoint is made of it"};
}

const BadNumberCounts& Accelerator::bad_number_counts() const noexcept { return impl_->numbers.counts; }

}  // namespace troupe
