#include "accelerator_impl.hpp"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/core/Generator.h>

#include <algorithm>
#include <mutex>
#include <nlohmann/json.hpp>

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
  if (std::find(known.begin(), known.end(), &loader) != known.end()) return;
  known.push_back(&loader);
  std::int64_t seed = 0;  // of a shuffle without one of its own: rank 0's draw for everyone
  if (is_main_process()) seed = static_cast<std::int64_t>(draw_seed());
  impl_->communicator.broadcast({&seed, sizeof seed, DType::I64}, 0).wait().or_throw();
  loader.shard(process_index(), num_processes(), impl_->options.dataloader, static_cast<std::uint64_t>(seed));
}

const LoaderState* Accelerator::Impl::ending_loader() const {
  // Loops nest as they were prepared, training before evaluation: the last one is the innermost.
  for (auto loader = loaders.rbegin(); loader != loaders.rend(); ++loader) {
    if ((*loader)->state().end_of_dataloader) return &(*loader)->state();
  }
  return nullptr;
}

nlohmann::ordered_json Accelerator::Impl::loader_state() const {
  auto state = nlohmann::ordered_json::array();
  for (const auto* loader : loaders) {
    const auto position = loader->position();
    state.push_back({{"epoch", position.epoch}, {"num_batches", position.num_batches}});
  }
  return state;
}

void Accelerator::Impl::load_loader_state(const nlohmann::ordered_json& state) {
  for (std::size_t l = 0; l < loaders.size(); ++l) {
    loaders[l]->resume({state[l].at("epoch").get<std::int64_t>(), state[l].at("num_batches").get<std::int64_t>()});
  }
}

}  // namespace troupe
