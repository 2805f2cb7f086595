#pragma once

#include <ATen/core/Generator.h>
#include <ATen/core/Tensor.h>

#include <array>
#include <vector>

namespace troupe::detail {

/// What a forward depends on besides its arguments: the state of the random generators it draws from and of autocast.
class ForwardState {
 public:
  /// Of the calling thread, now. @param device the inputs' own; a GPU's generator is kept as well.
  [[nodiscard]] static ForwardState now(at::Device device);

 private:
  friend class RestoredState;
  struct Autocast {
    at::DeviceType device;
    bool enabled;
    at::ScalarType dtype;
  };
  void restore() const;

  at::Device device_{at::kCPU};
  std::vector<at::Tensor> random_;  ///< of generators(device_)
  std::array<Autocast, 2> autocast_{};
  bool autocast_cache_ = false;
};

/// The calling thread's state as it was then, until destruction. Autocast keeps no copies of weights meanwhile: their
/// graph would die with the recomputation's, and LibTorch has one such cache for all threads.
class RestoredState {
 public:
  explicit RestoredState(const ForwardState& then);
  RestoredState(const RestoredState&) = delete;
  RestoredState& operator=(const RestoredState&) = delete;
  ~RestoredState();

 private:
  ForwardState before_;
};

}  // namespace troupe::detail
