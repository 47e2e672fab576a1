// k inputs into one result, stored once or many times: one pass over memory, added in the order of the inputs.
//
// Invariant: the result depends on the inputs and their order alone, not on the instruction set, the alignment, the
// number of elements in a call or the number of outputs. Half types are combined in fp32 and rounded once.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

#include "csrc/base/types.h"

namespace ringred {

struct InstructionSet;

// outputs[j][i] = finish(inputs[0][i] op inputs[1][i] op ...), for all j and i < count. An output may be one of the
// inputs, at the same address; it may not overlap one in any other way. For Op::average the sum is divided by
// `divisor`, integers truncating toward zero; for other operators `divisor` is not read.
using ReduceKernel = void (*)(const void* const* inputs, int input_count, void* const* outputs, int output_count,
                              std::size_t count, std::int64_t divisor);

// How this machine computes: "avx512", "avx2" or "baseline", or "auto" for the fastest that runs here. Throws a usage
// error for a name that does not run here.
const InstructionSet& instruction_set(std::string_view name);

// Throws a usage error where `op` is not defined for `dtype`.
ReduceKernel reduce_kernel(const InstructionSet& set, DType dtype, Op op);

// The type that partial results travel in when they leave registers: fp32 for half types, 64 bits for the average of
// narrow integers, the type itself otherwise.
DType partial_dtype(DType dtype, Op op);

// output[i] = input[i] between a dtype and its partial_dtype. Throws a usage error for any other pair.
using ConvertKernel = void (*)(const void* input, void* output, std::size_t count);
ConvertKernel convert_kernel(const InstructionSet& set, DType from, DType to);

// output[i] = to(input[i] * factor), in one pass; where `from` == `to` and the factor is 1, the bytes are copied. The
// output may be the input, at the same address, where the elements have one size; it may not overlap it in any other
// way.
//
// Half types and float32 are multiplied in fp32, by the factor rounded to fp32; where one side is float64, in fp64. The
// product is rounded once to `to`. Of complex numbers both parts are scaled. Integers are multiplied in fp64, truncated
// toward zero and saturated at the limits of the type; nan gives 0. Integers of more than 53 bits are therefore exact
// as copies only. Booleans have no products: the factor has to be 1, and is not read.
using ScaleKernel = void (*)(const void* input, void* output, std::size_t count, double factor);

// From every dtype to itself, and between any two of float16, bfloat16, float32 and float64. Throws a usage error for
// any other pair.
ScaleKernel scale_kernel(const InstructionSet& set, DType from, DType to);

}  // namespace ringred
