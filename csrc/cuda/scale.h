// One array into another, or in place, times a factor.
//
// Invariant: to[i] = from[i] * factor, to the bits of scale_kernel in csrc/reduce/reduce.h (but for the payload of a
// nan); the bits of from[i] where the factor is 1.
//
// Floor: reads count elements and writes count, over the device's bandwidth; nothing where it is in place and the
// factor 1.
#pragma once

#include <cstddef>

#include "csrc/base/types.h"
#include "csrc/cuda/abi.h"

namespace ringred::cuda {

// The arrays are the same, or do not overlap. Where both addresses have the same remainder of 16, accesses are of 16
// bytes. Throws a usage error for arrays that are not at multiples of an element's size, and for a factor other than 1
// where the dtype is not float16, bfloat16, float32 or float64.
void scale(const void* from, void* to, std::size_t count, DType dtype, double factor, Stream stream);

}  // namespace ringred::cuda
