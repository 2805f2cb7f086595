#include <ATen/CPUGeneratorImpl.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/multinomial.h>
#include <ATen/ops/randint.h>
#include <ATen/ops/randperm.h>

#include <algorithm>
#include <cmath>
#include <functional>
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

namespace {

/// Epochs that take their numbers from one generator, one after another.
class Replayed {
 public:
  using Draw = std::function<std::vector<std::int64_t>(at::Generator&)>;
  Replayed(std::uint64_t seed, Draw draw) : seed_(seed), draw_(std::move(draw)) { rewind(); }
  [[nodiscard]] std::vector<std::int64_t> order(std::int64_t epoch) {
    check_epoch(epoch);
    if (epoch < next_epoch_) rewind();
    std::vector<std::int64_t> order;
    for (; next_epoch_ <= epoch; ++next_epoch_) order = draw_(generator_);
    return order;
  }

 private:
  void rewind() {
    generator_ = at::make_generator<at::CPUGeneratorImpl>(seed_);
    next_epoch_ = 0;
  }
  std::uint64_t seed_;
  Draw draw_;
  at::Generator generator_;
  std::int64_t next_epoch_ = 0;  // the epoch whose order the generator gives next
};

void append(std::vector<std::int64_t>& order, const at::Tensor& indices) {
  const auto* first = indices.const_data_ptr<std::int64_t>();
  order.insert(order.end(), first, first + indices.numel());
}

/// As torch draws an epoch, what it draws and does not use included.
std::vector<std::int64_t> random_order(std::int64_t size, std::int64_t num_samples, bool replacement, at::Generator& generator) {
  constexpr std::int64_t kAtOnce = 32;  // torch's
  std::vector<std::int64_t> order;
  order.reserve(static_cast<std::size_t>(num_samples));
  const auto options = at::TensorOptions().dtype(at::kLong);
  if (replacement) {
    for (std::int64_t i = 0; i < num_samples / kAtOnce; ++i) append(order, at::randint(0, size, {kAtOnce}, generator, options));
    append(order, at::randint(0, size, {num_samples % kAtOnce}, generator, options));
    return order;
  }
  for (std::int64_t i = 0; i < num_samples / size; ++i) append(order, at::randperm(size, generator, options));
  append(order, at::randperm(size, generator, options).narrow(0, 0, num_samples % size));
  return order;
}

}  // namespace

struct RandomSampler::State {
  std::size_t num_samples;
  Replayed replayed;
};

RandomSampler::RandomSampler(std::size_t size, std::uint64_t seed) : RandomSampler(size, seed, Options{}) {}
RandomSampler::RandomSampler(std::size_t size, std::uint64_t seed, Options options) {
  check_not_empty(size);
  const auto count = options.num_samples.value_or(size);
  if (count == 0) throw Failure{Errc::InvalidArgument, "RandomSampler: num_samples = 0; it must be at least 1"};
  state_ = std::make_unique<State>(State{count, Replayed{seed, [=](at::Generator& generator) {
    return random_order(static_cast<std::int64_t>(size), static_cast<std::int64_t>(count), options.replacement, generator);
  }}});
}

RandomSampler::~RandomSampler() = default;
std::size_t RandomSampler::size() const { return state_->num_samples; }
std::vector<std::int64_t> RandomSampler::order(std::int64_t epoch) { return state_->replayed.order(epoch); }

struct WeightedRandomSampler::State {
  std::size_t num_samples;
  Replayed replayed;
};

WeightedRandomSampler::WeightedRandomSampler(std::vector<double> weights, std::size_t num_samples, bool replacement, std::uint64_t seed) {
  const auto fail = [](const std::string& text) { throw Failure{Errc::InvalidArgument, "WeightedRandomSampler: " + text}; };
  std::size_t above = 0;
  for (std::size_t i = 0; i < weights.size(); ++i) {
    if (!(weights[i] >= 0) || std::isinf(weights[i])) fail("weight " + std::to_string(i) + " is " + std::to_string(weights[i]) + "; weights are finite and not negative");
    above += weights[i] > 0;
  }
  if (num_samples == 0) fail("num_samples = 0; it must be at least 1");
  if (above == 0) fail("no weight is above 0");
  if (!replacement && num_samples > above)
    fail("num_samples = " + std::to_string(num_samples) + ", but only " + std::to_string(above) + " weights are above 0; draw fewer, or with replacement");
  const auto tensor = at::empty({std::ssize(weights)}, at::TensorOptions().dtype(at::kDouble));
  std::copy(weights.begin(), weights.end(), tensor.mutable_data_ptr<double>());
  state_ = std::make_unique<State>(State{num_samples, Replayed{seed, [=](at::Generator& generator) {
    std::vector<std::int64_t> order;
    append(order, at::multinomial(tensor, static_cast<std::int64_t>(num_samples), replacement, generator));
    return order;
  }}});
}

WeightedRandomSampler::~WeightedRandomSampler() = default;
std::size_t WeightedRandomSampler::size() const { return state_->num_samples; }
std::vector<std::int64_t> WeightedRandomSampler::order(std::int64_t epoch) { return state_->replayed.order(epoch); }

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
