// libFuzzer's entry: TROUPE_FUZZ_TARGET names a function of targets.hpp (tests/fuzz/run builds one
// program each).
#include "dataset_targets.hpp"
#include "node_targets.hpp"
#include "operator_targets.hpp"
#include "targets.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  return troupe::fuzz::TROUPE_FUZZ_TARGET(data, size);
}
