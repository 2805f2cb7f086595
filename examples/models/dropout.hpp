#pragma once

namespace at {
class Tensor;
}

namespace troupe::detail {

/// `x` with each element zero with probability `p` and scaled by 1/(1-p) otherwise, drawn from the
/// rank's generator; `x` itself when `p` is 0.
[[nodiscard]] at::Tensor dropout(const at::Tensor& x, double p);

}  // namespace troupe::detail
