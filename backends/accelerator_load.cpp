// Loading: each rank reads what it needs of a checkpoint, whoever wrote it.
#include "accelerator_impl.hpp"
#include "frozen_base.hpp"

#include <troupe/errors.hpp>

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/core/Generator.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <cstring>
#include <iostream>
#include <list>
#include <mutex>
#include <set>

namespace troupe {

namespace {

namespace fs = std::filesystem;
using detail::StatePiece;
using detail::StoredTensors;
using Wanted = StoredTensors::Wanted;

std::string numbered(const char* name, std::size_t i) { return i ? name + ("_" + std::to_string(i)) : std::string{name}; }

void set_generator(at::Generator generator, const std::string& bytes, const char* what) {
  const std::scoped_lock lock{generator.mutex()};
  const auto now = generator.get_state();
  if (now.nbytes() != bytes.size()) {
    throw Failure{Errc::FileCorrupt, std::string{"load_state: the state of the "} + what + " has " + std::to_string(bytes.size()) + " bytes, not " + std::to_string(now.nbytes())};
  }
  auto state = at::empty_like(now);
  std::memcpy(state.data_ptr(), bytes.data(), bytes.size());
  generator.set_state(state);
}

/// "a, b, c and 12 more"
std::string list_of(const std::vector<std::string>& names) {
  std::string text;
  for (std::size_t i = 0; i < names.size() && i < 5; ++i) text += (i ? ", " : "") + names[i];
  return names.size() > 5 ? text + " and " + std::to_string(names.size() - 5) + " more" : text;
}

/// What a checkpoint holds beside what is prepared: all of it is checked before anything is changed.
class LoadPlan {
 public:
  LoadPlan(const CheckpointReader& reader, LoadReport& report) : reader_(reader), report_(report) {}

  void add_model(std::string stem, std::vector<StatePiece> pieces) {
    auto& plan = models_.emplace_back(Model{StoredTensors{reader_, stem}, std::move(pieces), {}});
    std::set<const TensorSpec*> used;
    for (const auto& piece : plan.pieces) {
      const auto* spec = plan.stored.find(piece);
      if (!spec) {
        report_.missing.push_back(stem + ": " + piece.name);
        continue;
      }
      plan.stored.check_shape(*spec, piece);
      plan.wanted.push_back({spec, &piece});
      used.insert(spec);
      for (const auto& alias : piece.aliases) used.insert(plan.stored.find(alias));
      used.insert(plan.stored.find(piece.name));
    }
    add_unexpected(stem, plan.stored, used);
  }

  /// @param likes one a parameter: its sizes and what this rank has of it.
  void add_optimizer(std::string stem, Optimizer& optimizer, const std::vector<std::string>& names, std::vector<StatePiece> likes) {
    auto& plan = optimizers_.emplace_back(State{StoredTensors{reader_, stem}, &optimizer, std::move(likes), {}, {}});
    const auto slots = optimizer.slot_names();
    std::set<const TensorSpec*> used;
    plan.steps.resize(names.size());
    plan.slots.resize(names.size());
    for (std::size_t i = 0; i < names.size(); ++i) {
      const auto* step = plan.stored.find("step." + names[i]);
      if (!step) continue;  // never updated
      used.insert(step);
      std::vector<const TensorSpec*> found;
      for (const auto& slot : slots) {
        const auto* spec = plan.stored.find(slot + "." + names[i]);
        if (!spec) {
          report_.missing.push_back(stem + ": " + slot + "." + names[i]);
          continue;
        }
        plan.stored.check_shape(*spec, plan.likes[i]);
        used.insert(spec);
        found.push_back(spec);
      }
      if (found.size() != slots.size()) continue;  // begins anew
      plan.steps[i] = step;
      plan.slots[i] = std::move(found);
    }
    add_unexpected(stem, plan.stored, used);
  }

  void add_count(const char* what, std::size_t saved, std::size_t prepared) {
    if (saved == prepared) return;
    (saved > prepared ? report_.unexpected : report_.missing)
        .push_back("it holds " + std::to_string(saved) + " " + what + ", but " + std::to_string(prepared) + " were prepared");
  }

  void refuse_what_does_not_fit() const {
    if (report_.missing.empty() && report_.unexpected.empty()) return;
    std::string text = "load_state: " + reader_.directory().string() + " does not fit what is prepared";
    if (!report_.missing.empty()) text += "; missing there: " + list_of(report_.missing);
    if (!report_.unexpected.empty()) text += "; not prepared: " + list_of(report_.unexpected);
    throw Failure{Errc::InvalidArgument, text + ". Load with {.strict = false} to take what fits"};
  }

  void read() {
    for (const auto& plan : models_) plan.stored.read(plan.wanted);
    for (auto& plan : optimizers_) read_state(plan);
  }

 private:
  struct Model {
    StoredTensors stored;
    std::vector<StatePiece> pieces;
    std::vector<Wanted> wanted;
  };
  struct State {
    StoredTensors stored;
    Optimizer* optimizer;
    std::vector<StatePiece> likes;
    std::vector<const TensorSpec*> steps;               // by parameter; nullptr: no state
    std::vector<std::vector<const TensorSpec*>> slots;  // likewise
  };

  void add_unexpected(const std::string& stem, const StoredTensors& stored, const std::set<const TensorSpec*>& used) {
    for (const auto& spec : stored.specs()) {
      if (!used.contains(&spec)) report_.unexpected.push_back(stem + ": " + spec.name);
    }
  }

  static void read_state(State& plan) {
    std::vector<std::int64_t> updates(plan.steps.size());
    std::vector<const TensorSpec*> steps;
    for (const auto* step : plan.steps) {
      if (step) steps.push_back(step);
    }
    const auto counts = plan.stored.read_counts(steps);
    auto next = counts.begin();
    for (std::size_t i = 0; i < updates.size(); ++i) {
      if (plan.steps[i]) updates[i] = *next++;
    }
    plan.optimizer->reset_state(updates);
    std::list<StatePiece> pieces;
    std::vector<Wanted> wanted;
    for (std::size_t i = 0; i < updates.size(); ++i) {
      for (std::size_t s = 0; s < plan.slots[i].size() && updates[i] > 0; ++s) {
        auto& piece = pieces.emplace_back(plan.likes[i]);
        piece.local = plan.optimizer->state_view(s, i);
        if (!piece.local.defined()) {
          piece.put = [optimizer = plan.optimizer, s, i](const at::Tensor& values) { optimizer->write_state(s, i, values.view(optimizer->trained(i).sizes())); };
        }
        wanted.push_back({plan.slots[i][s], &piece});
      }
    }
    plan.stored.read(wanted);
  }

  const CheckpointReader& reader_;
  LoadReport& report_;
  std::list<Model> models_;      // pieces stay where they are
  std::list<State> optimizers_;
};

CheckpointReader open(const fs::path& directory) {
  CheckpointReader reader{directory};
  if (!reader.has_manifest() && fs::exists(directory / "state.json")) {
    throw Failure{Errc::Unsupported, directory.string() + ": was saved by a Troupe before checkpoints had manifests, which no version reads any more"};
  }
  return reader;
}

}  // namespace

LoadReport Accelerator::load_state(const fs::path& directory, LoadOptions options) { return impl_->load(directory, options); }

LoadReport Accelerator::Impl::load(const fs::path& directory, const LoadOptions& load_options, bool keep_loaders) {
  const at::NoGradGuard no_grad;
  if (saver) saver->wait();
  LoadReport report{.directory = directory, .missing = {}, .unexpected = {}};
  Outcome mine;
  try {
    const auto reader = open(directory);
    if (!is_snapshot(directory)) call_hooks(load_hooks, reader.directory());  // whose files no snapshot has
    const auto& state = reader.state();
    LoadPlan plan{reader, report};
    plan.add_count("optimizers", state ? state->learning_rates.size() : 0, optimizers.size());
    plan.add_count("schedulers", state ? state->scheduler_steps.size() : 0, schedulers.size());
    plan.add_count("loaders", state ? state->loaders.size() : 0, loaders.size());
    if (state) find_missing_streams(reader.rank_state(0), report);
    if (load_options.strict) plan.refuse_what_does_not_fit();
    for (std::size_t m = 0; m < models.size() && state; ++m) detail::check_frozen_base(*state, m, *models[m].module, reader.directory());
    for (std::size_t m = 0; m < models.size(); ++m) plan.add_model(numbered("model", m), pieces_of(models[m]));
    for (std::size_t o = 0; o < optimizers.size(); ++o) {
      std::vector<std::string> names;
      std::vector<StatePiece> likes;
      for (std::size_t i = 0; i < optimizers[o]->handles().size(); ++i) {
        names.push_back(name_in(*optimizers[o], i));
        likes.push_back(piece_of(optimizers[o]->handles()[i]));
      }
      plan.add_optimizer(numbered("optimizer", o), *optimizers[o], names, std::move(likes));
    }
    if (load_options.strict) plan.refuse_what_does_not_fit();
    plan.read();
    for (auto& model : models) note_buffers(model);  // as on every rank
    if (state) {
      const bool same_ranks = state->world_size == communicator.size();
      load_train_state(*state, same_ranks ? &reader.rank_state(communicator.rank()) : nullptr, reader.rank_state(0), keep_loaders);
      if (!keep_loaders) load_streams(reader, state->world_size);
    }
  } catch (const Failure& failure) {
    mine = {failure.code(), failure.what()};
  } catch (const std::exception& error) {
    mine = {Errc::StorageUnavailable, "load_state: " + directory.string() + ": " + error.what()};
  }
  agree(mine);
  for (const auto& model : models) {
    if (!model.shards) continue;
    model.shards->after_step();
    model.shards->settle();
  }
  forget_window();
  forget_boundary();
  replicas_differ = local_depth > 0;
  return report;
}

void Accelerator::Impl::load_train_state(const TrainState& state, const RankState* own, const RankState& first, bool keep_loaders) {
  for (std::size_t s = 0; s < std::min(schedulers.size(), state.scheduler_steps.size()); ++s) schedulers[s]->set_step(state.scheduler_steps[s]);
  for (std::size_t o = 0; o < std::min(optimizers.size(), state.learning_rates.size()); ++o) {
    const auto& lrs = state.learning_rates[o];
    for (std::size_t g = 0; g < std::min(lrs.size(), optimizers[o]->groups().size()); ++g) optimizers[o]->set_lr(g, lrs[g]);
  }
  for (std::size_t l = 0; l < std::min(loaders.size(), state.loaders.size()) && !keep_loaders; ++l) {
    resume_loader(l, state, own);
  }
  if (options.mixed_precision == Precision::FP16 && state.loss_scale > 0) {
    scaler.set_state({state.loss_scale, state.loss_scale_good_steps, state.loss_scale_hysteresis});
  }
  for (std::size_t i = 0; i < objects.size(); ++i) {
    const auto name = "object_" + std::to_string(i);
    const auto& saved = objects[i].per_rank ? (own ? *own : first).objects : state.objects;
    const auto found = saved.find(name);
    if (found == saved.end()) throw Failure{Errc::NotFound, "load_state: the checkpoint has no " + name + (objects[i].per_rank ? " of this rank" : "") + "; register objects in the order in which they were saved"};
    objects[i].load(found->second);
  }
  if (!own) {
    if (communicator.rank() == 0) {
      std::cerr << "load_state: saved by " << state.world_size << " ranks, loaded by " << communicator.size() << ": random generators go on from their seeds\n";
    }
    return;
  }
  for (std::size_t m = 0; m < models.size(); ++m) {
    if (const auto found = own->objects.find("buffers_" + std::to_string(m)); found != own->objects.end()) load_own_buffers(models[m], found->second);
  }
  set_generator(rank_generator(), own->rng, "rank's random generator");
  const auto found = own->objects.find("default_generator");
  const bool mine_alone = communicator.size() == 1 || communicator.name() != "threads";
  if (mine_alone && found != own->objects.end()) set_generator(at::detail::getDefaultCPUGenerator(), found->second, "default random generator");
}

}  // namespace troupe
