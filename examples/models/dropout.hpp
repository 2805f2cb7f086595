#pragma once

namespace at {
class Tensor;
}

namespace troupe::detail {

/// `x` with each element zero with probability `p` (to 1/65536) and scaled by 1/(1-p) otherwise;
/// `x` itself when `p` is 0. One seed is drawn from the rank's generator a call; the mask costs
/// about what filling it with zeros does.
[[nodiscard]] at::Tensor dropout(const at::Tensor& x, double p);

}  // namespace troupe::detail
