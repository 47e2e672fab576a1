// How one thread combines its elements of k inputs: the heart of the reduce kernels, for kernels that wait for their
// inputs, too.
//
// Invariant: an element is loaded from all inputs before it is stored to any output, so that outputs may be inputs.
#pragma once

#include <cstddef>

#include "csrc/cuda/reduce.h"
#include "csrc/cuda/stretch.cuh"

namespace ringred::cuda {

// Both operators of a kind in one kernel: the choice is the same for all threads, and kernels wait for memory.
struct Arithmetic {
  bool product;
  template <class T>
  __device__ T operator()(T left, T right) const {
    return product ? Multiply::apply(left, right) : Add::apply(left, right);
  }
};
struct Product {
  template <class T>
  __device__ T operator()(T left, T right) const {
    return Multiply::apply(left, right);
  }
};
struct Extreme {
  bool greatest;
  template <class T>
  __device__ T operator()(T left, T right) const {
    return greatest ? Maximum::apply(left, right) : Minimum::apply(left, right);
  }
};
struct Logical {
  bool all;
  __device__ std::uint8_t operator()(std::uint8_t left, std::uint8_t right) const {
    return all ? All::apply(left, right) : Any::apply(left, right);
  }
};

// Sums stay what they are, or become averages: times the reciprocal where that is exact, divided otherwise.
template <class Real>
struct FinishReal {
  enum class Way { keep, multiply, divide } way = Way::keep;
  Real value = 1;

  static FinishReal average(std::int64_t divisor) {
    const Real value = static_cast<Real>(divisor);
    if ((divisor & (divisor - 1)) == 0) return {Way::multiply, 1 / value};
    return {Way::divide, value};
  }
  __device__ Real operator()(Real sum) const {
    return way == Way::keep ? sum : way == Way::multiply ? sum * value : sum / value;
  }
};

// Loads that a thread starts before it waits for the first. Narrow elements need the registers for their sums.
template <unsigned wide>
inline constexpr unsigned loads_ahead = wide > 4 ? 2 : 4;

// The elements `start` to `start` + wide. Element, Combine and Finish as in csrc/reduce/elements.h.
template <class Element, unsigned wide, class Combine, class Finish>
__device__ __forceinline__ void combine_at(const ReduceArrays& arrays, std::size_t start, Combine combine,
                                           Finish finish) {
  using Stored = typename Element::Stored;
  constexpr unsigned ahead = loads_ahead<wide>;
  const auto inputs = static_cast<unsigned>(arrays.input_count);
  typename Element::Accumulator sum[wide] = {};  // of the first input, once that is loaded
  for (unsigned first = 0; first < inputs; first += ahead) {
    Vector<Stored, wide> loaded[ahead];
#pragma unroll
    for (unsigned k = 0; k < ahead; ++k)
      if (first + k < inputs)
        loaded[k] = vector_at<Stored, wide>(static_cast<const Stored*>(arrays.inputs[first + k]) + start);
#pragma unroll
    for (unsigned k = 0; k < ahead; ++k)
      if (first + k < inputs)
#pragma unroll
        for (unsigned i = 0; i < wide; ++i) {
          const auto value = Element::load(loaded[k].element[i]);
          sum[i] = first + k == 0 ? value : combine(sum[i], value);
        }
  }
  Vector<Stored, wide> result;
#pragma unroll
  for (unsigned i = 0; i < wide; ++i) result.element[i] = Element::store(finish(sum[i]));
  for (int k = 0; k < arrays.output_count; ++k) store_at(static_cast<Stored*>(arrays.outputs[k]) + start, result);
}

template <class Element, class Combine, class Finish>
struct CombineBody {
  const ReduceArrays& arrays;
  Combine combine;
  Finish finish;
  template <unsigned wide>
  __device__ __forceinline__ void at(std::size_t start) const {
    combine_at<Element, wide>(arrays, start, combine, finish);
  }
};

}  // namespace ringred::cuda
