// Starting a reduce kernel for one kind of element. Kernels are divided over files so that these compile side by side.
#pragma once

#include "csrc/cuda/launch.h"
#include "csrc/cuda/reduce.cuh"

namespace ringred::cuda {

struct ReduceCall {
  const ReduceArrays& arrays;
  std::size_t count;
  Op op;
  std::int64_t divisor;
  cudaStream_t stream;
};
void reduce_integers(const ReduceCall& call, DType dtype);

namespace {

// Sums of 16 elements fill the registers of more than a quarter of a multiprocessor.
template <class Element>
inline constexpr unsigned least_blocks = vector_elements<typename Element::Stored> > 8 ? 2 : 4;

template <class Element, class Combine, class Finish>
__global__ void __launch_bounds__(256, least_blocks<Element>)
    combine_arrays(const __grid_constant__ ReduceArrays arrays, Stretch stretch, Combine combine, Finish finish) {
  constexpr unsigned wide = vector_elements<typename Element::Stored>;
  stretch.walk<wide>(CombineBody<Element, Combine, Finish>{arrays, combine, finish});
}

template <class Element, class Combine, class Finish>
void start(const ReduceCall& call, Combine combine, Finish finish) {
  Alignment alignment;
  for (int k = 0; k < call.arrays.input_count; ++k) alignment.add(call.arrays.inputs[k]);
  for (int k = 0; k < call.arrays.output_count; ++k) alignment.add(call.arrays.outputs[k]);
  const Stretch stretch = alignment.stretch<typename Element::Stored>(call.count);
  launch("of a reduction", combine_arrays<Element, Combine, Finish>, strided_grid(stretch.items()), call.stream,
         call.arrays, stretch, combine, finish);
}

template <class Element>
void start_extreme(const ReduceCall& call) {
  start<Element>(call, Extreme{call.op == Op::max}, Keep{});
}

}  // namespace
}  // namespace ringred::cuda
