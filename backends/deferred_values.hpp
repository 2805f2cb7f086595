#pragma once

#include <troupe/parameter_source.hpp>

#include <ATen/core/Tensor.h>
#include <torch/nn/module.h>

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace troupe::detail {

/// The sources of a model's deferred parameters, by their names in it.
class DeferredValues {
 public:
  /// Throws Failure{InvalidArgument} naming a deferred parameter that no unit has a source for.
  explicit DeferredValues(const torch::nn::Module& model);
  [[nodiscard]] bool empty() const noexcept { return places_.empty(); }
  void read(const std::string& name, std::int64_t first, const at::Tensor& values) const;
  /// Of all sources; "" when there is nothing deferred.
  [[nodiscard]] std::string fingerprint() const;

 private:
  struct Place {
    std::shared_ptr<const ParameterSource> source;
    std::string name;  // there
  };
  std::map<std::string, Place> places_;
};

/// Gives `parameter` memory and its values.
void materialize(at::Tensor parameter, const std::string& name, const DeferredValues& values, at::Device device = at::kCPU);

}  // namespace troupe::detail
