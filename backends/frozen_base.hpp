#pragma once

#include <troupe/checkpoint_files.hpp>

#include <cstddef>
#include <filesystem>
#include <string>

namespace torch::nn {
class Module;
}

namespace troupe::detail {

/// The fingerprint of the frozen parameters that checkpoints leave out; "": they leave none out.
[[nodiscard]] std::string frozen_base_of(const torch::nn::Module& module);
/// Writes it down with a checkpoint.
void note_frozen_base(TrainState& state, std::size_t model, const torch::nn::Module& module);
/// Adapters fit the base that they were trained on only: throws Failure{InvalidArgument} naming both.
void check_frozen_base(const TrainState& state, std::size_t model, const torch::nn::Module& module, const std::filesystem::path& directory);

}  // namespace troupe::detail
