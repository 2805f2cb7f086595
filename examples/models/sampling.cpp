#include "sampling.hpp"

#include <ATen/CPUGeneratorImpl.h>

#include <algorithm>
#include <cmath>
#include <mutex>
#include <set>
#include <troupe/random.hpp>

#include "decoder_kernels.hpp"

namespace troupe::detail {

Sampler::Sampler(const GenerateOptions& options) : options_(options) {
  if (options.seed) generator_ = at::make_generator<at::CPUGeneratorImpl>(*options.seed);
}

double Sampler::draw() {
  auto& generator = generator_ ? *generator_ : rank_generator();
  const std::scoped_lock lock{generator.mutex()};
  return static_cast<double>(at::check_generator<at::CPUGeneratorImpl>(generator)->random64() >> 11) * 0x1p-53;
}

std::int64_t Sampler::choose(std::span<float> logits, std::span<const std::int64_t> seen) {
  if (options_.repetition_penalty != 1) {
    const auto penalty = static_cast<float>(options_.repetition_penalty);
    for (const auto token : std::set<std::int64_t>{seen.begin(), seen.end()}) {
      auto& logit = logits[static_cast<std::size_t>(token)];
      logit = logit < 0 ? logit * penalty : logit / penalty;
    }
  }
  if (!options_.do_sample) return index_of_largest(logits.data(), static_cast<std::int64_t>(logits.size()));
  return sample(logits);
}

/// Temperature first, then top_k, then top_p of what is left, as transformers orders them.
std::int64_t Sampler::sample(std::span<const float> logits) {
  candidates_.clear();
  for (std::size_t i = 0; i < logits.size(); ++i) candidates_.push_back({logits[i], static_cast<std::int64_t>(i)});
  const auto likelier = [](const Candidate& a, const Candidate& b) { return a.logit > b.logit || (a.logit == b.logit && a.token < b.token); };
  const auto k = static_cast<std::size_t>(options_.top_k);
  if (k > 0 && k < candidates_.size()) {
    std::nth_element(candidates_.begin(), candidates_.begin() + static_cast<std::ptrdiff_t>(k) - 1, candidates_.end(), likelier);
    candidates_.resize(k);
  }
  if (options_.top_p < 1 || k > 0) std::sort(candidates_.begin(), candidates_.end(), likelier);
  const auto most = std::max_element(candidates_.begin(), candidates_.end(), [](const auto& a, const auto& b) { return a.logit < b.logit; })->logit;
  weights_.clear();
  double total = 0;
  for (const auto& c : candidates_) {
    weights_.push_back(std::exp((static_cast<double>(c.logit) - most) / options_.temperature));
    total += weights_.back();
  }
  if (options_.top_p < 1) {
    double sum = 0;
    std::size_t kept = 0;
    while (kept < weights_.size() && (kept == 0 || sum < options_.top_p * total)) sum += weights_[kept++];
    weights_.resize(kept);
    total = sum;
  }
  double rest = draw() * total;
  for (std::size_t i = 0; i < weights_.size(); ++i) {
    rest -= weights_[i];
    if (rest < 0) return candidates_[i].token;
  }
  return candidates_[weights_.size() - 1].token;
}

}  // namespace troupe::detail
