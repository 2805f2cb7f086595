#include "accelerator_impl.hpp"

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
  impl_->shard(known.back());
}

void Accelerator::Impl::shard(const Loader& l) {
  l.loader->shard(communicator.rank(), communicator.size(), options.dataloader, l.shared_seed);
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
