#pragma once

#include <c10/core/ScalarType.h>
#include <c10/util/ArrayRef.h>

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>

namespace at {
class Tensor;
}
namespace torch::nn {
class Module;
}

namespace troupe {

/// Where the values of deferred parameters are: those that have sizes and a type, but no memory yet. An engine that shards such
/// a model asks for this rank's part of each and no more, so that no rank ever holds the whole. Set it with
/// `Unit::set_parameter_source` on the model.
///
/// Threads: const members from any thread.
class ParameterSource {
 public:
  virtual ~ParameterSource() = default;
  /// Elements [first, first + values.numel()) of parameter `name`, row-major, into `values` [n], converted to its type. Throws
  /// Failure{NotFound, FileCorrupt} naming file and tensor.
  virtual void read(const std::string& name, std::int64_t first, const at::Tensor& values) const = 0;
  /// Equal for equal values; compared among ranks by prepare().
  [[nodiscard]] virtual std::string fingerprint() const = 0;
};

/// A parameter without memory. Every use of its values throws c10::Error that says so.
[[nodiscard]] at::Tensor deferred_parameter(c10::IntArrayRef sizes, c10::ScalarType type);
[[nodiscard]] bool is_deferred(const at::Tensor& tensor);
/// True if a parameter in it has no memory yet.
[[nodiscard]] bool is_deferred(const torch::nn::Module& model);

/// The tensors of a Hugging Face directory, mapped: what was read leaves memory again.
[[nodiscard]] std::shared_ptr<const ParameterSource> directory_source(const std::filesystem::path& directory);

/// Gives every deferred parameter of `model` its memory and its values, whole, from the sources of the units in it.
/// `Accelerator::prepare` does it for a model that is not sharded. Throws Failure{InvalidArgument} where there is no source.
void materialize(torch::nn::Module& model);

}  // namespace troupe
