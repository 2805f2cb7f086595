#include "precision.hpp"

#include <troupe/errors.hpp>

#include <algorithm>

namespace troupe::detail {

DType dtype_named(const std::string& word) {
  if (word == "bf16") return DType::BF16;
  return word == "fp16" ? DType::F16 : DType::F32;
}

void check_precision(const ConfigFacts& facts) {
  const auto precision = facts.mixed_precision.value_or("no");
  if (precision == "no" || precision == "fp16" || precision == "bf16") return;
  const std::string instead = precision == "fp8" ? "; there is no fp8, use bf16" : "";
  throw Failure{Errc::InvalidConfig, "mixed_precision must be one of no, fp16, bf16, not '" + precision + "'" + instead};
}

EffectiveConfig from_facts(const ConfigFacts& facts) {
  check_precision(facts);
  EffectiveConfig made;
  made.num_processes = facts.num_processes;
  if (facts.num_processes) made.sources["num_processes"] = "argument";
  if (facts.gradient_accumulation_steps) {
    made.gradient_accumulation_steps = *facts.gradient_accumulation_steps;
    made.sources["gradient_accumulation_steps"] = "argument";
  }
  if (facts.mixed_precision) {
    made.mixed_precision = *facts.mixed_precision;
    made.sources["mixed_precision"] = "argument";
  }
  if (made.mixed_precision == "fp16") made.loss_scale = LossScale{};
  return made;
}

}  // namespace troupe::detail
