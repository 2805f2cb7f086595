#include <ATen/CPUGeneratorImpl.h>
#include <ATen/core/Generator.h>

#include <mutex>
#include <troupe/random.hpp>

namespace troupe {

at::Generator& rank_generator() {
  thread_local at::Generator generator =
      at::make_generator<at::CPUGeneratorImpl>(c10::default_rng_seed_val);
  return generator;
}

void set_seed(std::uint64_t seed, bool device_specific, int rank) {
  auto& generator = rank_generator();
  const std::scoped_lock lock{generator.mutex()};
  generator.set_current_seed(seed + (device_specific ? static_cast<std::uint64_t>(rank) : 0));
}

}  // namespace troupe
