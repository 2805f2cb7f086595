#include <troupe/errors.hpp>
#include <troupe/loss_scaler.hpp>

#include <algorithm>
#include <cmath>
#include <sstream>
#include <string>

namespace troupe {

namespace {

template <class T>
void require(bool holds, const char* setting, T value, const char* range) {
  if (holds) return;
  std::ostringstream text;
  text << "loss scale: " << setting << " = " << value << ", but it must be " << range;
  throw Failure{Errc::InvalidConfig, text.str()};
}

}  // namespace

LossScaler::LossScaler(const LossScale& options) : options_(options) {
  const auto& o = options_;
  require(o.initial > 0 && std::isfinite(o.initial), "initial", o.initial, "positive");
  require(o.growth_factor > 1 && std::isfinite(o.growth_factor), "growth_factor", o.growth_factor, "more than 1");
  require(o.backoff_factor > 0 && o.backoff_factor < 1, "backoff_factor", o.backoff_factor, "between 0 and 1");
  require(o.growth_interval >= 1, "growth_interval", o.growth_interval, "1 or more");
  require(o.hysteresis >= 1, "hysteresis", o.hysteresis, "1 or more");
  require(o.minimum >= 0 && o.minimum <= o.initial, "minimum", o.minimum, "between 0 and the initial scale");
  state_ = {.scale = o.initial, .good_steps = 0, .hysteresis = o.hysteresis};
}

void LossScaler::update(bool overflow) {
  if (!options_.dynamic) return;
  auto& s = state_;
  if (overflow) {
    s.good_steps = 0;
    const bool forgive = options_.policy == LossScale::Policy::DeepSpeed && s.hysteresis > 1;
    if (forgive) --s.hysteresis;
    else shrink();
    return;
  }
  if (options_.policy == LossScale::Policy::GradScaler) {
    if (++s.good_steps < options_.growth_interval) return;
    s.good_steps = 0;
    const double grown = s.scale * options_.growth_factor;
    if (std::isfinite(static_cast<float>(grown))) s.scale = grown;
    return;
  }
  const bool grow = s.good_steps > 0 && s.good_steps % options_.growth_interval == 0;
  if (grow) s.scale *= options_.growth_factor;
  if (grow || options_.consecutive_hysteresis) s.hysteresis = options_.hysteresis;
  ++s.good_steps;
}

void LossScaler::shrink() {
  const double shrunk = std::max(state_.scale * options_.backoff_factor, options_.minimum);
  if (shrunk == state_.scale || static_cast<float>(shrunk) == 0) {
    std::ostringstream text;
    text << "loss scale: gradients overflow at the smallest scale, " << state_.scale
         << ": they are infinite or NaN whatever it is. Look for a NaN in the data or the loss, lower the learning rate, or train in bf16";
    throw Failure{Errc::TrainFunctionFailed, text.str()};
  }
  state_.scale = shrunk;
}

void LossScaler::set_state(const State& state) {
  if (!(state.scale > 0 && std::isfinite(state.scale)) || state.good_steps < 0 || state.hysteresis < 1) {
    throw Failure{Errc::InvalidArgument, "loss scale: a saved state of scale " + std::to_string(state.scale) + ", " + std::to_string(state.good_steps) +
                                             " good steps and hysteresis " + std::to_string(state.hysteresis) + " cannot be"};
  }
  state_ = state;
  if (!options_.dynamic) state_.scale = options_.initial;
}

}  // namespace troupe
