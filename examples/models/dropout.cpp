#include "dropout.hpp"

#include <ATen/TensorOperators.h>
#include <ATen/core/Generator.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty_like.h>

#include <troupe/random.hpp>

namespace troupe::detail {

at::Tensor dropout(const at::Tensor& x, double p) {
  if (p == 0) return x;
  // The mask needs no gradient, so the product's node keeps the mask alone.
  auto mask = at::empty_like(x.detach());
  mask.bernoulli_(1 - p, rank_generator()).mul_(1 / (1 - p));
  return x * mask;
}

}  // namespace troupe::detail
