// The step of an optimizer on a slice of the parameters, as csrc/reduce/update.h has it, on the device: one kernel that
// sums the parts of the gradient, applies SGD, Adam or AdamW and stores the parameter wherever it is needed.
//
// Invariant: the bits of update_kernel in csrc/reduce/update.h, but for the payload of a nan: the same operations in
// the same order, none of them contracted.
//
// Floor: reads (gradient_count + 1 + s) * count elements and writes (output_count + s) * count, and count more where
// the average is stored, over the bandwidth of the memories that they are in; s, the arrays of state, is 0 or 1 for
// SGD, 2 or 3 for Adam. So Adam on 4 parts of fp32 with 4 outputs moves 52 bytes for each element.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

#include "csrc/base/types.h"
#include "csrc/cuda/reduce.h"
#include "csrc/reduce/update.h"

namespace ringred::cuda {

// Aliasing as in csrc/reduce/update.h.
struct UpdateSlice {
  const void* gradients[most_arrays];
  void* outputs[most_arrays];
  int gradient_count, output_count;
  const void* parameter;
  void* state[3];
  void* average;
};

// Throws a usage error unless `dtype` is float32 or float64, and for arrays that are too many, null where they are in
// use or not at multiples of the size of an element.
void update(const UpdateSlice& slice, std::size_t count, DType dtype, Rule rule, const Rates& rates,
            std::int64_t divisor, double factor, cudaStream_t stream);

}  // namespace ringred::cuda
