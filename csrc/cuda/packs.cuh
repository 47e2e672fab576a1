// Sixteen bytes of elements: the unit in which collectives move, combine and send.
//
// Invariant: a pack is combined in the accumulator of its element type, float for halves and 64 bits for integers, and
// rounded when it is stored. Left and right are told apart, for zeros and NaNs: the lower rank is on the left, so that
// all ranks get the same bits.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "csrc/base/types.h"
#include "csrc/cuda/tape.h"
#include "csrc/reduce/elements.h"

namespace ringred::cuda {

template <class T>
inline constexpr std::size_t unit_elements = unit_bytes / sizeof(T);

// How an element is loaded into its accumulator and stored from it.
template <class T>
struct Widened {
  using Accumulator = T;
  __device__ static T load(T value) { return value; }
  __device__ static T store(T value) { return value; }
};
template <>
struct Widened<std::int32_t> {
  using Accumulator = std::int64_t;
  __device__ static std::int64_t load(std::int32_t value) { return value; }
  __device__ static std::int32_t store(std::int64_t value) { return static_cast<std::int32_t>(value); }
};
template <>
struct Widened<__half> {
  using Accumulator = float;
  __device__ static float load(__half value) { return __half2float(value); }
  __device__ static __half store(float value) { return __float2half_rn(value); }
};
template <>
struct Widened<__nv_bfloat16> {
  using Accumulator = float;
  __device__ static float load(__nv_bfloat16 value) { return __bfloat162float(value); }
  __device__ static __nv_bfloat16 store(float value) { return __float2bfloat16_rn(value); }
};

template <class A>
__device__ __forceinline__ A added(A left, A right) {
  return left + right;
}
// Wraps around.
__device__ __forceinline__ std::int64_t added(std::int64_t left, std::int64_t right) {
  return static_cast<std::int64_t>(static_cast<std::uint64_t>(left) + static_cast<std::uint64_t>(right));
}
template <class A>
__device__ __forceinline__ A multiplied(A left, A right) {
  return left * right;
}
__device__ __forceinline__ std::int64_t multiplied(std::int64_t left, std::int64_t right) {
  return static_cast<std::int64_t>(static_cast<std::uint64_t>(left) * static_cast<std::uint64_t>(right));
}

// The elements of `units` units in their accumulators.
template <class T, unsigned units>
class Packs {
 public:
  using Accumulator = typename Widened<T>::Accumulator;

  __device__ __forceinline__ explicit Packs(const uint4 (&from)[units]) {
#pragma unroll
    for (unsigned unit = 0; unit < units; ++unit) load(from[unit], values_[unit]);
  }

  // this = this op theirs, or theirs op this. The branches are the same for the whole grid.
  __device__ __forceinline__ void combine(Op op, const uint4 (&theirs)[units], bool theirs_left) {
    if (op == Op::sum || op == Op::average)
      each(theirs, theirs_left, [](Accumulator a, Accumulator b) { return added(a, b); });
    else if (op == Op::min)
      each(theirs, theirs_left, [](Accumulator a, Accumulator b) { return Minimum::apply(a, b); });
    else if (op == Op::max)
      each(theirs, theirs_left, [](Accumulator a, Accumulator b) { return Maximum::apply(a, b); });
    else
      each(theirs, theirs_left, [](Accumulator a, Accumulator b) { return multiplied(a, b); });
  }

  __device__ __forceinline__ void divide(int divisor) {
#pragma unroll
    for (unsigned unit = 0; unit < units; ++unit)
#pragma unroll
      for (unsigned i = 0; i < count; ++i) values_[unit][i] = values_[unit][i] / static_cast<Accumulator>(divisor);
  }

  __device__ __forceinline__ void store(uint4 (&to)[units]) const {
#pragma unroll
    for (unsigned unit = 0; unit < units; ++unit) {
      T elements[count];
#pragma unroll
      for (unsigned i = 0; i < count; ++i) elements[i] = Widened<T>::store(values_[unit][i]);
      memcpy(&to[unit], elements, unit_bytes);
    }
  }

 private:
  static constexpr unsigned count = unit_elements<T>;

  __device__ __forceinline__ static void load(const uint4& unit, Accumulator (&values)[count]) {
    T elements[count];
    memcpy(elements, &unit, unit_bytes);
#pragma unroll
    for (unsigned i = 0; i < count; ++i) values[i] = Widened<T>::load(elements[i]);
  }

  template <class Function>
  __device__ __forceinline__ void each(const uint4 (&theirs)[units], bool theirs_left, const Function& function) {
#pragma unroll
    for (unsigned unit = 0; unit < units; ++unit) {
      Accumulator other[count];
      load(theirs[unit], other);
#pragma unroll
      for (unsigned i = 0; i < count; ++i) {
        const Accumulator mine = values_[unit][i];
        values_[unit][i] = function(theirs_left ? other[i] : mine, theirs_left ? mine : other[i]);
      }
    }
  }

  Accumulator values_[units][count];
};

// A buffer of `count` elements, aligned to a unit, whose last unit may be a part.
template <class T>
class Units {
 public:
  __device__ Units(void* data, std::size_t count) : elements_(static_cast<T*>(data)), count_(count) {}

  __device__ std::size_t whole() const { return count_ / unit_elements<T>; }

  __device__ __forceinline__ uint4 load_whole(std::size_t unit) const {
    return reinterpret_cast<const uint4*>(elements_)[unit];
  }
  __device__ __forceinline__ void store_whole(std::size_t unit, const uint4& value) const {
    reinterpret_cast<uint4*>(elements_)[unit] = value;
  }
  __device__ __forceinline__ uint4 load(std::size_t unit) const {
    if (unit < whole()) return load_whole(unit);
    T part[unit_elements<T>] = {};
#pragma unroll
    for (unsigned i = 0; i < unit_elements<T>; ++i)
      if (unit * unit_elements<T> + i < count_) part[i] = elements_[unit * unit_elements<T> + i];
    uint4 value;
    memcpy(&value, part, unit_bytes);
    return value;
  }
  __device__ __forceinline__ void store(std::size_t unit, const uint4& value) const {
    if (unit < whole()) return store_whole(unit, value);
    T part[unit_elements<T>];
    memcpy(part, &value, unit_bytes);
#pragma unroll
    for (unsigned i = 0; i < unit_elements<T>; ++i)
      if (unit * unit_elements<T> + i < count_) elements_[unit * unit_elements<T> + i] = part[i];
  }

 private:
  T* elements_;
  std::size_t count_;
};

}  // namespace ringred::cuda
