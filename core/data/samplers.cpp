#include <ATen/CPUGeneratorImpl.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/randperm.h>

#include <numeric>
#include <string>
#include <troupe/data/samplers.hpp>
#include <troupe/errors.hpp>

namespace troupe {
namespace {

std::vector<std::int64_t> permutation(std::size_t size, at::Generator& generator) {
  const auto order = at::randperm(static_cast<std::int64_t>(size), generator,
                                  at::TensorOptions().dtype(at::kLong));
  const auto* first = order.const_data_ptr<std::int64_t>();
  return {first, first + size};
}

std::vector<std::int64_t> seeded_permutation(std::size_t size, std::uint64_t seed) {
  auto generator = at::make_generator<at::CPUGeneratorImpl>(seed);
  return permutation(size, generator);
}

void check_not_empty(std::size_t size) {
  if (size == 0)
    throw Failure{Errc::InvalidArgument, "DataLoader: an empty data set cannot be shuffled"};
}

void check_epoch(std::int64_t epoch) {
  if (epoch < 0)
    throw Failure{Errc::InvalidArgument,
                  "DataLoader: epoch = " + std::to_string(epoch) + "; it must be at least 0"};
}

}  // namespace

std::vector<std::int64_t> SequentialSampler::order(std::int64_t) {
  std::vector<std::int64_t> order(size_);
  std::iota(order.begin(), order.end(), 0);
  return order;
}

struct RandomSampler::State {
  std::size_t size;
  std::uint64_t seed;
  at::Generator generator;
  std::int64_t next_epoch = 0;  // the epoch whose permutation the generator gives next

  void rewind() {
    generator = at::make_generator<at::CPUGeneratorImpl>(seed);
    next_epoch = 0;
  }
};

RandomSampler::RandomSampler(std::size_t size, std::uint64_t seed) {
  check_not_empty(size);
  state_ = std::make_unique<State>(State{size, seed, {}});
  state_->rewind();
}

RandomSampler::~RandomSampler() = default;
std::size_t RandomSampler::size() const { return state_->size; }

std::vector<std::int64_t> RandomSampler::order(std::int64_t epoch) {
  check_epoch(epoch);
  auto& s = *state_;
  if (epoch < s.next_epoch) s.rewind();
  std::vector<std::int64_t> order;
  for (; s.next_epoch <= epoch; ++s.next_epoch) {
    order = permutation(s.size, s.generator);
    // torch draws a second one for "the rest of num_samples", which is empty.
    (void)permutation(s.size, s.generator);
  }
  return order;
}

SeedableRandomSampler::SeedableRandomSampler(std::size_t size, std::uint64_t seed)
    : size_(size), seed_(seed) {
  check_not_empty(size);
}

std::vector<std::int64_t> SeedableRandomSampler::order(std::int64_t epoch) {
  check_epoch(epoch);
  return seeded_permutation(size_, seed_ + static_cast<std::uint64_t>(epoch));
}

DistributedSampler::DistributedSampler(std::size_t size, Options options)
    : size_(size), options_(options) {
  const auto& o = options_;
  if (o.world_size < 1 || o.rank < 0 || o.rank >= o.world_size) {
    throw Failure{Errc::InvalidArgument, "DistributedSampler: rank = " + std::to_string(o.rank) +
                                             ", world_size = " + std::to_string(o.world_size) +
                                             "; rank must be from 0 to world_size - 1"};
  }
  const auto world = static_cast<std::size_t>(o.world_size);
  num_samples_ = o.drop_last ? size / world : (size + world - 1) / world;
}

std::vector<std::int64_t> DistributedSampler::order(std::int64_t epoch) {
  check_epoch(epoch);
  const auto all = options_.shuffle ? seeded_permutation(
                                          size_, options_.seed + static_cast<std::uint64_t>(epoch))
                                    : SequentialSampler{size_}.order(epoch);
  std::vector<std::int64_t> mine(num_samples_);
  for (std::size_t i = 0; i < num_samples_; ++i) {
    mine[i] = all[(i * static_cast<std::size_t>(options_.world_size) +
                   static_cast<std::size_t>(options_.rank)) %
                  size_];
  }
  return mine;
}

}  // namespace troupe
