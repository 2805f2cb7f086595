#pragma once

#include "kernels.hpp"

namespace troupe::detail {

// The updates of kernels.hpp by LibTorch's operations, one after another, for elements on a device. On the CPU they give the
// same bits, but for the last of what comes out of LibTorch's square root; that is how they are tested. They were not run on a GPU.

void by_operations(const Elements& elements, const AdamStep& step);
void by_operations(const Elements& elements, const SgdStep& step);
void by_operations(const Elements& elements, const AdagradStep& step);
void by_operations(const Elements& elements, const LionStep& step);

}  // namespace troupe::detail
