#pragma once

#include <troupe/errors.hpp>
#include <troupe/optimizer.hpp>

#include <sstream>
#include <string>
#include <vector>

namespace troupe::detail {

/// Throws Failure{InvalidArgument} naming the optimizer and the setting unless `holds`.
inline void require(bool holds, const char* optimizer, const char* setting, double value, const char* range) {
  if (holds) return;
  std::ostringstream text;
  text << optimizer << ": " << setting << " = " << value << ", but it must be " << range;
  throw Failure{Errc::InvalidArgument, text.str()};
}

inline void require_positive(const char* optimizer, const char* setting, double value) {
  require(value >= 0, optimizer, setting, value, "0 or more");
}

inline void require_fraction(const char* optimizer, const char* setting, double value) {
  require(value >= 0 && value < 1, optimizer, setting, value, "in [0, 1)");
}

inline std::vector<ParamGroup> one_group(std::vector<at::Tensor> params) { return {{.params = std::move(params)}}; }

}  // namespace troupe::detail
