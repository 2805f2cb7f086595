// Names of checkpoints, and what users add to them.
#include "accelerator_impl.hpp"

#include <troupe/checkpoint_directory.hpp>
#include <troupe/errors.hpp>

#include <algorithm>
#include <charconv>
#include <iostream>

namespace troupe {

namespace {

namespace fs = std::filesystem;
constexpr std::string_view prefix = "checkpoint_";

std::optional<std::int64_t> iteration_in(std::string_view name) {
  if (!name.starts_with(prefix)) return std::nullopt;
  name.remove_prefix(prefix.size());
  std::int64_t number = -1;
  const auto [end, error] = std::from_chars(name.data(), name.data() + name.size(), number);
  if (error != std::errc{} || end != name.data() + name.size() || number < 0) return std::nullopt;
  return number;
}

/// Renamed first: what is half removed has no checkpoint's name.
void remove_checkpoint(const fs::path& path) {
  auto& files = real_file_system();
  const auto doomed = path.parent_path() / ("." + path.filename().string() + ".removed");
  files.remove_tree(doomed);
  files.rename(path, doomed);
  files.remove_tree(doomed);
}

}  // namespace

fs::path Accelerator::Impl::iteration_path(std::int64_t iteration) const {
  return options.project_config.project_dir / "checkpoints" / (std::string{prefix} + std::to_string(iteration));
}

std::vector<std::int64_t> Accelerator::Impl::saved_iterations() const {
  std::vector<std::int64_t> found;
  std::error_code error;
  for (fs::directory_iterator at{options.project_config.project_dir / "checkpoints", error}, end; !error && at != end; at.increment(error)) {
    const auto iteration = iteration_in(at->path().filename().string());
    if (iteration && at->is_directory(error)) found.push_back(*iteration);
  }
  std::ranges::sort(found);
  return found;
}

std::shared_ptr<PendingSave> Accelerator::save_state() {
  auto& i = *impl_;
  auto& project = i.options.project_config;
  if (!project.automatic_checkpoint_naming) {
    throw Failure{Errc::InvalidArgument, "save_state: no directory was given; give one, or set project_config.automatic_checkpoint_naming"};
  }
  if (project.project_dir.empty()) throw Failure{Errc::InvalidArgument, "save_state: project_config.project_dir is empty"};
  if (project.total_limit && *project.total_limit < 1) {
    throw Failure{Errc::InvalidArgument, "save_state: project_config.total_limit = " + std::to_string(*project.total_limit) + ", but it must be 1 or more"};
  }
  const auto before = i.save_counts.skipped;
  auto pending = i.save(i.iteration_path(project.iteration), /*replace=*/false, [impl = impl_.get(), limit = project.total_limit] {
    if (!limit) return;
    auto all = impl->saved_iterations();
    for (std::size_t n = 0; n + static_cast<std::size_t>(*limit) < all.size(); ++n) remove_checkpoint(impl->iteration_path(all[n]));
  });
  if (i.save_counts.skipped == before) ++project.iteration;
  return pending;
}

LoadReport Accelerator::load_state(LoadOptions options) {
  auto& i = *impl_;
  auto& project = i.options.project_config;
  if (!project.automatic_checkpoint_naming) {
    throw Failure{Errc::InvalidArgument, "load_state: no directory was given; give one, or set project_config.automatic_checkpoint_naming"};
  }
  if (i.saver) i.saver->wait();
  wait_for_everyone();  // rank 0 has committed and removed what it must
  auto all = i.saved_iterations();
  for (; !all.empty(); all.pop_back()) {
    try {
      auto report = i.load(i.iteration_path(all.back()), options);
      project.iteration = std::max(project.iteration, all.back() + 1);
      return report;
    } catch (const Failure& failure) {
      if (failure.code() != Errc::FileCorrupt || all.size() == 1) throw;  // the same on all ranks
      if (is_main_process()) std::cerr << std::string{failure.what()} + "; the checkpoint before it is loaded\n";
    }
  }
  throw Failure{Errc::NotFound, "load_state: there is no checkpoint in " + (project.project_dir / "checkpoints").string()};
}

void Accelerator::register_object(SavedObject object) { impl_->objects.push_back(std::move(object)); }

RemovableHandle Accelerator::register_save_state_pre_hook(StateHook hook) {
  const auto id = impl_->next_hook++;
  impl_->save_hooks.emplace(id, std::move(hook));
  return RemovableHandle{[impl = impl_.get(), id] { impl->save_hooks.erase(id); }};
}

RemovableHandle Accelerator::register_load_state_pre_hook(StateHook hook) {
  const auto id = impl_->next_hook++;
  impl_->load_hooks.emplace(id, std::move(hook));
  return RemovableHandle{[impl = impl_.get(), id] { impl->load_hooks.erase(id); }};
}

void Accelerator::Impl::reserve_for_saves() {
  if (!options.checkpoint.async || models.empty() || optimizers.empty()) return;
  // Weights and their state, in this rank's share.
  std::uint64_t bytes = 0;
  const auto share = [](const detail::StatePiece& piece) {
    return piece.holder < 0 ? 0 : static_cast<std::uint64_t>(piece.count) * c10::elementSize(piece.dtype) / static_cast<std::uint64_t>(piece.num_holders);
  };
  for (const auto& model : models) {
    for (const auto& piece : pieces_of(model)) bytes += share(piece);
  }
  for (const auto* optimizer : optimizers) {
    if (optimizer->keeps_state_on_disk()) return;
    for (const auto& handle : optimizer->handles()) bytes += optimizer->slot_names().size() * share(piece_of(handle));
  }
  if (!saver) saver = std::make_unique<detail::BackgroundSaver>();
  saver->reserve(static_cast<std::size_t>(bytes + bytes / 64 + (8 << 20)));
}

}  // namespace troupe
