#pragma once

#include <string>

namespace torch::nn {
class Module;
}

namespace troupe {

/// Tells one set of parameters from another by their names, shapes and samples of their values, as fp32: the same for a model that
/// was loaded in another type that holds them, or deferred. No guard against those who want two that look the same.
[[nodiscard]] std::string fingerprint(const torch::nn::Module& model);

}  // namespace troupe
