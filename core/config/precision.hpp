#pragma once

#include <troupe/effective_config.hpp>

#include <string>

namespace troupe::detail {

/// "fp32", "fp16" or "bf16".
[[nodiscard]] DType dtype_named(const std::string& word);
/// Throws Failure{InvalidConfig} unless the argument mixed_precision is one of no, fp16, bf16.
void check_precision(const ConfigFacts& facts);
/// What does not depend on a plugin: ranks, accumulation, batch, precision and GradScaler's loss scale.
[[nodiscard]] EffectiveConfig from_facts(const ConfigFacts& facts);

}  // namespace troupe::detail
