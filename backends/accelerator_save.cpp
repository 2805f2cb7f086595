// Saving: each rank writes its share of one checkpoint, at once or beside training.
#include "accelerator_impl.hpp"
#include "frozen_base.hpp"

#include <troupe/checkpoint_directory.hpp>
#include <troupe/errors.hpp>

#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <iostream>
#include <regex>
#include <sstream>
#include <utility>

namespace troupe {

namespace {

namespace fs = std::filesystem;

/// Runs `work`; what it throws is the outcome.
template <class Work>
Outcome outcome_of(Work&& work) {
  try {
    work();
    return {};
  } catch (const Failure& failure) {
    return {failure.code(), failure.what()};
  } catch (const std::exception& error) {
    return {Errc::StorageUnavailable, error.what()};
  }
}

at::ScalarType type_of(SaveModelOptions::Dtype dtype, at::ScalarType type) {
  if (!at::isFloatingType(type)) return type;
  switch (dtype) {
    case SaveModelOptions::Dtype::BF16: return at::kBFloat16;
    case SaveModelOptions::Dtype::F16: return at::kHalf;
    case SaveModelOptions::Dtype::F32: return at::kFloat;
    case SaveModelOptions::Dtype::Same: break;
  }
  return type;
}

/// Files of weights that a reader might take for these.
bool is_weight_file(const std::string& name) {
  static const std::regex pattern{R"((model|pytorch_model)(-\d+-of-\d+)?\.(safetensors|bin)(\.index\.json)?)"};
  return std::regex_match(name, pattern);
}

/// Moves what was written into `staging` into `directory`: shards, then the index, then what is stale goes.
void publish_model(const fs::path& staging, const fs::path& directory) {
  auto& files = real_file_system();
  std::vector<std::string> fresh;
  for (const auto& entry : files.list(staging)) {
    if (is_weight_file(entry.name)) fresh.push_back(entry.name);
  }
  std::ranges::stable_partition(fresh, [](const auto& name) { return !name.ends_with(".json"); });
  for (const auto& name : fresh) files.rename(staging / name, directory / name);
  files.sync_directory(directory);
  for (const auto& entry : files.list(directory)) {
    const bool stale = is_weight_file(entry.name) && std::ranges::find(fresh, entry.name) == fresh.end();
    if (stale && entry.kind == FileSystem::Kind::File) files.remove_file(directory / entry.name);
  }
  files.remove_tree(staging);
}

}  // namespace

ByteSize::ByteSize(const char* text) {
  std::size_t digits = 0;
  const std::string all{text ? text : ""};
  double number = -1;
  try {
    number = std::stod(all, &digits);
  } catch (const std::exception&) {
    digits = 0;
  }
  const auto unit = all.substr(digits);
  static const std::map<std::string, double> units{{"", 1}, {"B", 1}, {"KB", 1e3}, {"MB", 1e6}, {"GB", 1e9}, {"TB", 1e12},
                                                   {"KiB", 1024.0}, {"MiB", 1024.0 * 1024}, {"GiB", 1024.0 * 1024 * 1024}, {"TiB", 1024.0 * 1024 * 1024 * 1024}};
  const auto found = units.find(unit);
  if (digits == 0 || found == units.end() || !(number >= 0) || number * found->second > 9e18) {
    throw Failure{Errc::InvalidArgument, "\"" + all + "\" is no size in bytes; give a number, or one with a unit: \"10GB\", \"5GiB\", \"300MB\""};
  }
  bytes_ = static_cast<std::uint64_t>(number * found->second);
}

void Accelerator::Impl::check_savable(const char* call) const {
  const auto refuse = [call](const std::string& why) { throw Failure{Errc::InvalidArgument, std::string{call} + ": " + why}; };
  if (is_inside_window() && !window_start.holds) {
    refuse("an accumulation window is open whose batches no prepared loader gave, and gradients are not saved; call it after an update, or prepare the loader");
  }
  if (local_depth > 0) refuse("a LocalSGD is alive, and ranks differ until it averages; call it after it");
  if (joining) refuse("inside join_uneven_inputs ranks are not in step; call it after it");
}

bool Accelerator::Impl::saves_async() const {
  const bool state = std::ranges::any_of(optimizers, [](const auto* optimizer) { return optimizer->keeps_state_on_disk(); });
  const bool parameters = sharding().offload_params.place == Offload::Place::Disk;
  return options.checkpoint.async && !state && !parameters;
}

bool Accelerator::Impl::skip_when_busy() {
  if (!saver) saver = std::make_unique<detail::BackgroundSaver>();
  std::uint8_t busy = saver->busy();
  if (options.checkpoint.when_busy == WhenBusy::Wait) {
    saver->wait();
    return false;
  }
  // A checkpoint is whole with every rank's part only: one rank that is busy makes all skip.
  if (communicator.size() > 1) communicator.all_reduce({&busy, 1, DType::U8}, ReduceOp::Max).wait().or_throw();
  if (busy) ++save_counts.skipped;
  return busy != 0;
}

void Accelerator::Impl::agree(const Outcome& mine) {
  if (communicator.size() == 1) return mine.or_throw();
  std::ostringstream text;
  text << static_cast<int>(mine.code()) << " " << mine.text();
  const auto all = detail::all_gather_bytes(communicator, mine.ok() ? std::string{} : text.str());
  for (std::size_t r = 0; r < all.size(); ++r) {
    if (all[r].empty()) continue;
    if (r == static_cast<std::size_t>(communicator.rank())) mine.or_throw();
    std::istringstream other{all[r]};
    int code = 0;
    other >> code;
    const auto words = other.str().substr(other.str().find(' ') + 1);
    throw Failure{static_cast<Errc>(code), mine.text() == words ? words : "rank " + std::to_string(r) + ": " + words};
  }
}

void Accelerator::Impl::call_hooks(const std::map<int, StateHook>& hooks, const fs::path& directory) const {
  if (hooks.empty()) return;
  std::vector<std::shared_ptr<torch::nn::Module>> modules;
  for (const auto& model : models) modules.push_back(model.module);
  for (const auto& [id, hook] : hooks) hook(modules, directory);
}

std::shared_ptr<PendingSave> Accelerator::Impl::ended(const Outcome& outcome) {
  last_save = std::make_shared<PendingSave>();
  counted = nullptr;
  last_save->finish(outcome);
  count_last_save();
  return last_save;
}

std::shared_ptr<PendingSave> Accelerator::Impl::start(const CheckpointPart& part, detail::BackgroundSaver::Write write) {
  last_save = saver->start(part, std::move(write), [rank = communicator.rank()](const Outcome& outcome) {
    if (!outcome.ok()) std::cerr << "rank " + std::to_string(rank) + ": a checkpoint was not saved, training goes on: " + outcome.text() + "\n";
  });
  counted = nullptr;
  return last_save;
}

Checkpoint Accelerator::checkpoint() {
  auto& i = *impl_;
  i.check_savable("checkpoint");
  const bool async = i.saves_async();
  const bool skip = async && i.skip_when_busy();
  i.count_last_save();
  // A disk that cannot be written costs this checkpoint, not the run; a part that a rank misses is missing, and the others need its calls.
  fs::path directory;
  Outcome room;
  try {
    directory = i.context.shared_checkpoint_dir();
    if (!skip) i.call_hooks(i.save_hooks, directory);
  } catch (const Failure& failure) {
    if (failure.code() != Errc::StorageUnavailable) throw;
    room = {failure.code(), failure.what()};
  }
  if (skip) {
    auto pending = std::make_shared<PendingSave>();
    pending->finish({Errc::Cancelled, "checkpoint: skipped, the one before is still being written"});
    return Checkpoint{directory, num_processes(), std::move(pending)};
  }
  const auto collected = i.collect();
  if (!room.ok()) return Checkpoint{directory, num_processes(), i.ended(room)};
  const auto fit = i.savable_numbers(collected.part);
  if (async) {
    return Checkpoint{directory, num_processes(), i.start(collected.part, [directory, fit](PartSnapshot& snapshot) {
      fit.or_throw();
      snapshot.write(directory);
    })};
  }
  const auto outcome = fit.ok() ? outcome_of([&] { write_part(directory, collected.part); }) : fit;
  const auto pending = i.ended(outcome);
  return Checkpoint{directory, num_processes(), outcome.ok() ? nullptr : pending};
}

std::shared_ptr<PendingSave> Accelerator::save_state(const fs::path& directory) { return impl_->save(directory, /*replace=*/true, nullptr); }

std::shared_ptr<PendingSave> Accelerator::Impl::save(const fs::path& target, bool replace, std::function<void()> after) {
  check_savable("save_state");
  const bool async = saves_async();
  const bool main = communicator.rank() == 0;
  const int ranks = communicator.size();
  if (async && skip_when_busy()) {
    auto pending = std::make_shared<PendingSave>();
    pending->finish({Errc::Cancelled, "save_state: skipped, the save before is still being written"});
    return pending;
  }
  count_last_save();
  const auto place = std::make_shared<CheckpointDirectory>(target);
  agree(outcome_of([&] {
    if (main) place->begin(replace);
  }));
  const auto staging = CheckpointDirectory::staging_of(target);
  if (!save_hooks.empty()) agree(outcome_of([&] { call_hooks(save_hooks, staging); }));
  if (async) {
    try {
      const auto collected = collect();
      return start(collected.part, [=, fit = savable_numbers(collected.part), by = saver.get(), rank = communicator.rank(), limit = options.checkpoint.parts_timeout](PartSnapshot& snapshot) {
        try {
          fit.or_throw();
          snapshot.write(staging);
          if (!main) return;
          place->wait_for_parts(ranks, limit, [by] { return by->stopping(); });
          place->commit(ranks);
          if (after) after();
        } catch (const std::exception& error) {
          if (main) place->discard();
          else CheckpointDirectory::give_up(target, rank, error.what());
          throw;
        }
      });
    } catch (const std::exception& error) {
      if (!main) CheckpointDirectory::give_up(target, communicator.rank(), error.what());
      throw;
    }
  }
  try {
    agree(outcome_of([&] {
      const auto collected = collect();
      savable_numbers(collected.part).or_throw();
      write_part(staging, collected.part);
    }));
    agree(outcome_of([&] {
      if (!main) return;
      place->commit(ranks);
      if (after) after();
    }));
  } catch (const Failure&) {
    if (main) place->discard();
    ++save_counts.failed;
    throw;
  }
  return ended({});
}

void Accelerator::Impl::count_last_save() {
  if (!last_save || counted == last_save.get() || !last_save->done()) return;
  counted = last_save.get();
  ++(last_save->wait().ok() ? save_counts.written : save_counts.failed);
}

Outcome Accelerator::wait_for_saves() {
  auto& i = *impl_;
  if (i.saver) i.saver->wait();
  i.count_last_save();
  return i.last_save ? i.last_save->wait() : Outcome{};
}

const SaveCounts& Accelerator::save_counts() const noexcept {
  impl_->count_last_save();
  return impl_->save_counts;
}

void Accelerator::save_model(const torch::nn::Module& module, const fs::path& directory, SaveModelOptions options) {
  const at::NoGradGuard no_grad;
  auto& i = *impl_;
  if (!detail::frozen_base_of(module).empty()) {
    throw Failure{Errc::InvalidArgument, "save_model: the model is adapters over a frozen base; save_adapter() them, and merge where the base is loaded whole"};
  }
  const auto staging = directory / ".saving";
  i.agree(outcome_of([&] {
    if (!is_main_process()) return;
    real_file_system().make_directories(directory);
    real_file_system().remove_tree(staging);
    real_file_system().make_directories(staging);
  }));
  i.agree(outcome_of([&] {
    auto pieces = i.pieces_of(i.prepared("save_model", &module));
    for (auto& piece : pieces) piece.dtype = type_of(options.dtype, piece.dtype);
    std::vector<at::Tensor> keep;
    CheckpointPart part{.rank = process_index(), .num_writers = num_processes(), .files = {}, .state = {}, .rank_state = {}};
    part.files.push_back(detail::shared_file("model", pieces, options.max_shard_size.bytes(), keep));
    write_part(staging, part);
  }));
  i.agree(outcome_of([&] {
    if (is_main_process()) publish_model(staging, directory);
  }));
}

}  // namespace troupe
