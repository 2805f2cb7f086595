#include "accelerator_impl.hpp"

#include <troupe/device_batches.hpp>
#include <troupe/errors.hpp>

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/core/Generator.h>

#include <algorithm>
#include <mutex>

namespace troupe {

namespace {

std::uint64_t draw_seed() {
  auto& generator = rank_generator();
  const std::scoped_lock lock{generator.mutex()};
  return at::check_generator<at::CPUGeneratorImpl>(generator)->random64();
}

}  // namespace

void Accelerator::prepare_data_loader(DataLoader& loader) {
  auto& known = impl_->loaders;
  if (std::any_of(known.begin(), known.end(), [&](const auto& k) { return k.loader == &loader; })) return;
  std::int64_t seed = 0;  // of a shuffle without one of its own: rank 0's draw for everyone
  if (is_main_process()) seed = static_cast<std::int64_t>(draw_seed());
  impl_->communicator.broadcast({&seed, sizeof seed, DType::I64}, 0).wait().or_throw();
  const auto id = impl_->boundary.next_loader++;
  known.push_back({&loader, static_cast<std::uint64_t>(seed), id});
  loader.set_asked([self = std::weak_ptr{impl_->self}, id](bool more) {
    if (const auto alive = self.lock()) (*alive)->asked(id, more);
  });
  if (auto& runtime = impl_->context.device_runtime(); runtime.has_own_memory()) loader.set_transfer(to_device(runtime));
  impl_->shard(known.back());
}

void Accelerator::Impl::shard(const Loader& l) {
  const auto broadcast = [&group = communicator](std::string& bytes) {
    auto size = static_cast<std::int64_t>(bytes.size());
    group.broadcast({&size, sizeof size, DType::I64}, 0).wait().or_throw();
    bytes.resize(static_cast<std::size_t>(size));
    if (size > 0) group.broadcast({bytes.data(), bytes.size(), DType::U8}, 0).wait().or_throw();
  };
  l.loader->shard(communicator.rank(), communicator.size(), options.dataloader, l.shared_seed, broadcast);
}

void Accelerator::Impl::resume_loader(std::size_t l, const TrainState& state, const RankState* own) {
  const auto& saved = state.loaders[l];
  auto& loader = *loaders[l].loader;
  loaders[l].shared_seed = saved.shared_seed;
  shard(loaders[l]);
  const auto key = loader_key(l);
  if (loader.has_own_position()) {
    if (own) {
      if (const auto found = own->objects.find(key); found != own->objects.end()) return loader.load_state_dict(found->second);
    }
    if (!own && state.world_size != communicator.size()) {
      throw Failure{Errc::Unsupported, "load_state: prepared loader " + std::to_string(l) + " has a position of each rank's own (no in_order, or a data set that shards itself): load it with " +
                                           std::to_string(state.world_size) + " ranks, as it was saved, not " + std::to_string(communicator.size())};
    }
  }
  if (const auto found = state.objects.find(key); found != state.objects.end()) return loader.load_state_dict(found->second);
  // A data set that has become shorter: its epoch is over.
  loader.resume_after(saved.epoch, std::min(saved.samples_consumed, loader.num_samples().value_or(saved.samples_consumed)));
}

const LoaderState* Accelerator::Impl::ending_loader() const {
  // Loops nest as they were prepared, training before evaluation: the last one is the innermost.
  for (auto l = loaders.rbegin(); l != loaders.rend(); ++l) {
    if (l->loader->state().end_of_dataloader) return &l->loader->state();
  }
  for (auto s = streams.rbegin(); s != streams.rend(); ++s) {
    if (s->stream->state().end_of_dataloader) return &s->stream->state();
  }
  return nullptr;
}

}  // namespace troupe
