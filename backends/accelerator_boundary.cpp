// Between steps: what is done when the loop asks for its next batch. Snapshots in memory.
#include "accelerator_impl.hpp"

#include <troupe/black_box.hpp>
#include <troupe/errors.hpp>

#include <algorithm>
#include <iostream>

namespace troupe {

void Accelerator::Impl::window_ended() {
  const bool local = no_sync_depth > 0 || std::ranges::any_of(models, [](const Model& model) { return model.no_sync_depth > 0; });
  if (local) return;  // gradients that the loop accumulates itself
  boundary.window_ended = true;
  boundary.used = boundary.asked;
}

void Accelerator::Impl::asked(int loader, bool more) {
  const bool known = std::ranges::any_of(loaders, [&](const Loader& l) { return l.id == loader; }) ||
                     std::ranges::any_of(streams, [&](const Stream& s) { return s.id == loader; });
  if (!known) return;
  note_asked(loader, more);
  mark_phase(StepPhase::Other);  // the loader marks what follows
  const bool used = std::exchange(boundary.batch_out, false);
  if (boundary.window_ended && boundary.used.contains(loader)) {
    boundary.window_ended = false;
    boundary.asked.clear();
    if (gate->sync && local_depth == 0 && !joining) (void)pass_boundary();
  }
  if (more) boundary.asked.insert(loader);
  else boundary.asked.erase(loader);  // an evaluation that is over
  boundary.batch_out = more;
  if (used) context.step_completed();
  if (more && accumulation.num_steps > 1 && !is_inside_window()) note_window_start();
}

std::int64_t Accelerator::Impl::num_updates() const {
  std::int64_t sum = 0;
  for (const auto* optimizer : optimizers) {
    for (std::size_t i = 0; i < optimizer->handles().size(); ++i) sum += optimizer->num_updates(i);
  }
  return sum;
}

void Accelerator::Impl::forget_boundary() {
  boundary.window_ended = false;
  boundary.asked.clear();
  boundary.used.clear();
  boundary.updates = num_updates();
  snapshots.updates = 0;
}

bool Accelerator::Impl::pass_boundary() {
  auto& s = snapshots;
  if (!s.options) s.options = context.snapshots();
  if (s.options->every <= 0 || s.options->directory.empty() || s.counts.off) return false;
  // Without an update this is the middle of a window that the loop counts itself, whose gradients no snapshot keeps.
  const auto updates = num_updates();
  if (!optimizers.empty() && updates == boundary.updates && !gate->skip) return false;
  boundary.updates = updates;
  if (++s.updates < s.options->every) return false;
  s.updates = 0;
  return take_snapshot();
}

bool Accelerator::Impl::take_snapshot() {
  auto& s = snapshots;
  if (!s.writer) open_snapshots();
  if (!s.writer) return false;
  ++s.number;  // on all ranks alike
  try {
    const auto collected = collect();
    const auto result = s.writer->take(s.number, collected.part, context.reports());
    if (result.taken == SnapshotWriter::Taken::Skipped) {
      ++s.counts.skipped;
      return false;
    }
    if (!s.alone && s.writer->newest_whole() > 0) {
      if (communicator.rank() == 0) end_older_snapshot_series(s.options->directory, s.series);
      s.alone = true;
    }
    if (result.taken == SnapshotWriter::Taken::Good) {
      ++s.counts.taken;
      return true;
    }
    ++s.counts.not_finite;
    if (!std::exchange(s.told_not_finite, true)) {
      std::cerr << "rank " + std::to_string(communicator.rank()) + ": " + result.culprit->name +
                       " holds infinity or what is no number: no snapshot is taken of it, and the last whole one stays\n";
    }
  } catch (const std::exception& error) {
    stop_snapshots(error.what(), true);
  }
  return false;
}

void Accelerator::Impl::open_snapshots() {
  auto& s = snapshots;
  const auto& directory = s.options->directory;
  const auto tried = [](auto&& work) {
    try {
      work();
      return std::string{};
    } catch (const std::exception& error) {
      return std::string{error.what()};
    }
  };
  // The first of all ranks' reasons; the same everywhere.
  const auto any_of_all = [&](const std::string& mine) {
    if (communicator.size() == 1) return mine;
    const auto all = detail::all_gather_bytes(communicator, mine);
    const auto found = std::ranges::find_if(all, [](const auto& text) { return !text.empty(); });
    return found == all.end() ? std::string{} : "rank " + std::to_string(found - all.begin()) + ": " + *found;
  };
  const bool main = communicator.rank() == 0;
  auto why = tried([&] {
    if (context.local_world_size() != communicator.size()) throw Failure{Errc::Unsupported, "not all ranks are on this host"};
    if (!save_hooks.empty()) {
      throw Failure{Errc::Unsupported, "a save_state_pre_hook writes files, which snapshots do not hold; register_for_checkpointing keeps objects in both"};
    }
    if (main) s.series = begin_snapshot_series(directory);
  });
  if (why = any_of_all(why); !why.empty()) return stop_snapshots(why, main);
  if (communicator.size() > 1) communicator.broadcast({&s.series, sizeof s.series, DType::I64}, 0).wait().or_throw();
  s.writer = std::make_unique<SnapshotWriter>(
      SnapshotWriter::Place{directory, s.series, context.attempt(), communicator.rank(), communicator.size()});
  why = any_of_all(tried([&] { s.writer->reserve(collect().part).or_throw(); }));
  if (why.empty()) return;
  stop_snapshots(why, main);
  if (main) (void)tried([&] { remove_snapshot_series(directory, s.series); });
}

void Accelerator::Impl::stop_snapshots(const std::string& why, bool tell) {
  snapshots.writer.reset();
  snapshots.counts.off = true;
  if (!tell) return;
  std::cerr << "rank " + std::to_string(communicator.rank()) + ": no snapshots in memory are taken from here on, training goes on: " + why + "\n";
}

bool Accelerator::snapshot() {
  auto& i = *impl_;
  if (i.is_inside_window()) throw Failure{Errc::InvalidArgument, "snapshot: an accumulation window is open; call it after an update"};
  i.check_savable("snapshot");
  i.boundary.window_ended = false;
  return i.pass_boundary();
}

const SnapshotCounts& Accelerator::snapshot_counts() const noexcept { return impl_->snapshots.counts; }

}  // namespace troupe
