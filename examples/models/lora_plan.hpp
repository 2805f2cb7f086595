#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <map>
#include <string>
#include <troupe/linear.hpp>
#include <troupe/lora.hpp>
#include <troupe/unit.hpp>
#include <utility>
#include <vector>

namespace troupe::detail {

/// What a LoRA configuration comes down to in a model.
struct LoraPlan {
  struct Target {
    std::string name;  ///< of the layer
    LinearImpl* layer;
  };
  std::vector<Target> targets;
  /// Parameters of the model that are trained beside adapters, tied ones under each name.
  std::vector<std::pair<std::string, at::Tensor>> trained;
};

/// Changes nothing. Throws Failure{InvalidConfig} naming a target that no layer has.
[[nodiscard]] LoraPlan plan_lora(const Unit& model, const LoraConfig& config);

/// PEFT's name of a parameter: "base_model.model.<layer>.lora_A.weight". @param adapted names of adapted layers.
[[nodiscard]] std::string peft_name(const std::string& parameter, const std::vector<LoraPlan::Target>& targets);

/// Adapted layers of a model.
[[nodiscard]] std::vector<LoraPlan::Target> adapted_layers(const Unit& model);

}  // namespace troupe::detail
