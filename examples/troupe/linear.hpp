#pragma once

#include <ATen/core/Tensor.h>
#include <torch/nn/module.h>
#include <torch/nn/pimpl.h>

#include <cstdint>
#include <memory>

namespace troupe {

struct LoraConfig;

/// y = x W^T + b, to which LoRA may add (x A^T) B^T · scaling. "weight" [out, in] and "bias" [out] are its parameters; with an
/// adapter "lora_A.weight" [r, in] and "lora_B.weight" [out, r] too.
class LinearImpl : public torch::nn::Module {
 public:
  /// Not initialised. @param deferred without memory, see <troupe/parameter_source.hpp>.
  LinearImpl(std::int64_t in, std::int64_t out, bool with_bias, at::ScalarType type = at::kFloat, bool deferred = false);
  [[nodiscard]] at::Tensor forward(const at::Tensor& x) const;

  /// An adapter: what LoRA adds. See <troupe/lora.hpp>, which makes them.
  struct Adapter {
    at::Tensor a_RI, b_OR;
    double scaling = 1;
    double dropout = 0;  ///< of its input, while training
    std::shared_ptr<const LoraConfig> config;  ///< it was made by
    at::Tensor kept_weight{};  ///< of the base, while the adapter is merged into it
  };
  /// Registers the adapter's parameters.
  void set_adapter(Adapter adapter);
  [[nodiscard]] Adapter* adapter() noexcept { return adapter_.get(); }
  [[nodiscard]] const Adapter* adapter() const noexcept { return adapter_.get(); }
  void remove_adapter();
  [[nodiscard]] bool merged() const noexcept { return adapter_ && adapter_->kept_weight.defined(); }
  [[nodiscard]] std::int64_t in_features() const noexcept { return in_; }
  [[nodiscard]] std::int64_t out_features() const noexcept { return out_; }

  at::Tensor weight;
  at::Tensor bias;  ///< undefined without one

 private:
  std::int64_t in_, out_;
  std::unique_ptr<Adapter> adapter_;
};
TORCH_MODULE(Linear);

}  // namespace troupe
