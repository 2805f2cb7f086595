#pragma once

#include "resume_run.hpp"

#include <cstdint>
#include <string>

namespace troupe::test {

/// Of all weights, whole; collective.
inline std::string digest_of(Training& training) {
  std::uint64_t hash = 14695981039346656037ULL;  // FNV-1a
  for (const auto& [name, tensor] : training.accelerator.get_state_dict(*training.net.ptr())) {
    const auto flat = tensor.contiguous();
    const auto* bytes = static_cast<const unsigned char*>(flat.const_data_ptr());
    for (std::size_t i = 0; i < flat.nbytes(); ++i) hash = (hash ^ bytes[i]) * 1099511628211ULL;
  }
  return std::to_string(hash);
}

}  // namespace troupe::test
