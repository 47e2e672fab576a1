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
  combine_stretch<Element>(arrays, stretch, blockIdx.x * std::size_t{blockDim.x} + threadIdx.x,
                           gridDim.x * std::size_t{blockDim.x}, combine, finish);
}

template <class Stored>
Stretch stretch_of(const ReduceArrays& arrays, std::size_t count) {
  const auto remainder = [](const void* address) { return reinterpret_cast<std::uintptr_t>(address) % access_bytes; };
  const std::size_t first = remainder(arrays.inputs[0]);
  bool alike = true;
  for (int k = 0; k < arrays.input_count; ++k) alike = alike && remainder(arrays.inputs[k]) == first;
  for (int k = 0; k < arrays.output_count; ++k) alike = alike && remainder(arrays.outputs[k]) == first;
  const std::size_t head = elements_before_vector(static_cast<const Stored*>(arrays.inputs[0]));
  if (!alike || head >= count) return {count, 0, 0};
  return {count, head, (count - head) / vector_elements<Stored>};
}

template <class Element, class Combine, class Finish>
void start(const ReduceCall& call, Combine combine, Finish finish) {
  const Stretch stretch = stretch_of<typename Element::Stored>(call.arrays, call.count);
  launch("of a reduction", combine_arrays<Element, Combine, Finish>,
         strided_grid(stretch.vectors > 0 ? stretch.vectors : stretch.count), call.stream, call.arrays, stretch,
         combine, finish);
}

template <class Element>
void start_extreme(const ReduceCall& call) {
  start<Element>(call, Extreme{call.op == Op::max}, Keep{});
}

}  // namespace
}  // namespace ringred::cuda
