#pragma once

#include <ATen/core/Generator.h>

#include <cstdint>
#include <optional>
#include <span>
#include <troupe/generate.hpp>
#include <vector>

namespace troupe::detail {

/// Chooses tokens as GenerateOptions say.
class Sampler {
 public:
  /// @param options outlive it.
  explicit Sampler(const GenerateOptions& options);
  /// @param logits of one row; changed. @param seen the row's tokens so far, which repetition_penalty makes less likely.
  [[nodiscard]] std::int64_t choose(std::span<float> logits, std::span<const std::int64_t> seen);

 private:
  [[nodiscard]] double draw();
  [[nodiscard]] std::int64_t sample(std::span<const float> logits);

  const GenerateOptions& options_;
  std::optional<at::Generator> generator_;
  struct Candidate {
    float logit;
    std::int64_t token;
  };
  std::vector<Candidate> candidates_;
  std::vector<double> weights_;
};

}  // namespace troupe::detail
