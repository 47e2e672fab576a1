// The table that each instruction set's object file offers.
#pragma once

#include <cstddef>
#include <cstdint>

namespace ringred {

using ReduceKernel = void (*)(const void* const*, int, void* const*, int, std::size_t, std::int64_t);
using ConvertKernel = void (*)(const void*, void*, std::size_t);
using ScaleKernel = void (*)(const void*, void*, std::size_t, double);

struct UpdateArrays;
struct Rates;
using UpdateKernel = void (*)(const UpdateArrays&, std::size_t, std::int64_t, double, const Rates&);
using NormKernel = double (*)(const void* const*, int, void*, std::size_t, std::int64_t);

struct KernelTable {
  ReduceKernel reduce[15][6];  // [DType][Op]; null where the operator is not defined
  ConvertKernel half_to_float, float_to_half, bfloat_to_float, float_to_bfloat;
  ConvertKernel widen[6], narrow[6];  // [DType] i8..u32, to and from 64 bits of the same signedness
  ScaleKernel scale[15][15];          // [DType from][DType to]; null where the pair is not defined
  UpdateKernel update[2][3];          // [float32, float64][Rule]
  NormKernel norm[2];                 // [float32, float64]
};

// One function for each object file that kernels.cpp is compiled into.
namespace baseline {
const KernelTable& kernel_table();
}
namespace avx2 {
const KernelTable& kernel_table();
}
namespace avx512 {
const KernelTable& kernel_table();
}

}  // namespace ringred
