// k inputs into one result, stored once or in the memory of every peer: one pass over memory, combined in the order of
// the inputs.
//
// Invariant: the bits of reduce_kernel in csrc/reduce/reduce.h (but for the payload of a nan): half types are combined
// in fp32 and rounded once, an average is divided once, after the sum; whatever the alignment and the number of
// outputs.
//
// Floor: reads input_count * count elements and writes output_count * count, over the bandwidth of the memories that
// they are in.
#pragma once

#include <cstddef>
#include <cstdint>

#include "csrc/base/types.h"
#include "csrc/cuda/abi.h"

namespace ringred::cuda {

inline constexpr int most_arrays = 32;

// An output may be one of the inputs, at the same address; it may not overlap one in any other way. Where the addresses
// of all arrays have the same remainder of 16, accesses are of 16 bytes.
struct ReduceArrays {
  const void* inputs[most_arrays];
  void* outputs[most_arrays];
  int input_count, output_count;
};

// Throws a usage error for an operator that the dtype does not have, and for arrays that are too many, null or not at
// multiples of the size of an element. `divisor` is read for Op::average only.
void reduce(const ReduceArrays& arrays, std::size_t count, DType dtype, Op op, std::int64_t divisor, Stream stream);

}  // namespace ringred::cuda
