#include "forward_state.hpp"

#include <troupe/random.hpp>

#include <ATen/Context.h>
#include <ATen/autocast_mode.h>

#include <mutex>

namespace troupe::detail {

namespace {

std::vector<at::Generator> generators(at::Device device) {
  std::vector<at::Generator> result{rank_generator()};
  if (!device.is_cpu()) result.push_back(at::globalContext().defaultGenerator(device));
  return result;
}

}  // namespace

ForwardState ForwardState::now(at::Device device) {
  ForwardState state;
  state.device_ = device;
  for (auto& generator : generators(device)) {
    const std::scoped_lock lock{generator.mutex()};
    state.random_.push_back(generator.get_state());
  }
  const std::array devices{at::kCPU, at::kCUDA};
  for (std::size_t i = 0; i < devices.size(); ++i) {
    state.autocast_[i] = {devices[i], at::autocast::is_autocast_enabled(devices[i]), at::autocast::get_autocast_dtype(devices[i])};
  }
  state.autocast_cache_ = at::autocast::is_autocast_cache_enabled();
  return state;
}

void ForwardState::restore() const {
  auto generator = generators(device_);
  for (std::size_t i = 0; i < generator.size(); ++i) {
    const std::scoped_lock lock{generator[i].mutex()};
    generator[i].set_state(random_[i]);
  }
  for (const auto& [device, enabled, dtype] : autocast_) {
    at::autocast::set_autocast_enabled(device, enabled);
    at::autocast::set_autocast_dtype(device, dtype);
  }
  at::autocast::set_autocast_cache_enabled(autocast_cache_);
}

RestoredState::RestoredState(const ForwardState& then) : before_(ForwardState::now(then.device_)) {
  then.restore();
  at::autocast::set_autocast_cache_enabled(false);
}

RestoredState::~RestoredState() { before_.restore(); }

}  // namespace troupe::detail
