#include "frozen_base.hpp"

#include <troupe/errors.hpp>
#include <troupe/unit.hpp>

namespace troupe::detail {

namespace {

std::string key_of(std::size_t model) { return "frozen_base_" + std::to_string(model); }

}  // namespace

std::string frozen_base_of(const torch::nn::Module& module) {
  const auto* unit = dynamic_cast<const Unit*>(&module);
  return unit ? unit->frozen_base() : std::string{};
}

void note_frozen_base(TrainState& state, std::size_t model, const torch::nn::Module& module) {
  if (auto base = frozen_base_of(module); !base.empty()) state.objects[key_of(model)] = std::move(base);
}

void check_frozen_base(const TrainState& state, std::size_t model, const torch::nn::Module& module, const std::filesystem::path& directory) {
  const auto found = state.objects.find(key_of(model));
  const auto mine = frozen_base_of(module);
  if (found == state.objects.end() || found->second == mine) return;
  throw Failure{Errc::InvalidArgument, "load_state: " + directory.string() + " holds what was trained over a frozen base with fingerprint " + found->second + ", but model " +
                                           std::to_string(model) + (mine.empty() ? " has no frozen base" : "'s base has fingerprint " + mine) +
                                           "; load the base that it was trained on, with the same adapters"};
}

}  // namespace troupe::detail
