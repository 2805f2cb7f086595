#pragma once

#include <troupe/effective_config.hpp>

#include <string>

namespace troupe::tools {

/// A DeepSpeed JSON file (".json"), or a file of `accelerate config` (any other name).
[[nodiscard]] EffectiveConfig resolve_file(const std::string& file, const ConfigFacts& facts);

}  // namespace troupe::tools
