#include <troupe/data/sampler.hpp>

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/randperm.h>

#include <numeric>

namespace troupe {

Indices sequential_order(std::size_t num_samples) {
  Indices order(num_samples);
  std::iota(order.begin(), order.end(), std::size_t{0});
  return order;
}

Indices random_order(std::size_t num_samples, std::uint64_t seed) {
  auto generator = at::make_generator<at::CPUGeneratorImpl>(seed);
  const auto permutation = at::randperm(static_cast<std::int64_t>(num_samples), generator, at::kLong);
  const auto* values = permutation.const_data_ptr<std::int64_t>();
  return {values, values + num_samples};
}

}  // namespace troupe
