// Elements in kernels: those of csrc/reduce/elements.h, with half types that the device converts itself, and several
// elements in one access of 16 bytes.
//
// Invariant: an element gives the bits that it gives on the CPU. Only a nan may differ in its payload.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "csrc/reduce/elements.h"

namespace ringred::cuda {

struct HalfElement {
  using Stored = std::uint16_t;
  using Accumulator = float;
  static __device__ float load(Stored value) { return __half2float(__ushort_as_half(value)); }
  static __device__ Stored store(float value) { return __half_as_ushort(__float2half_rn(value)); }
};

struct BFloatElement {
  using Stored = std::uint16_t;
  using Accumulator = float;
  static __device__ float load(Stored value) { return __bfloat162float(__ushort_as_bfloat16(value)); }
  static __device__ Stored store(float value) { return __bfloat16_as_ushort(__float2bfloat16_rn(value)); }
};

inline constexpr std::size_t access_bytes = 16;  // the widest access of a thread

// Elements that are loaded and stored with accesses of 16 bytes, at an address that is a multiple of 16; or one element
// anywhere.
template <class T, unsigned count>
struct alignas(count > 1 ? access_bytes : alignof(T)) Vector {
  static_assert(count == 1 || count * sizeof(T) % access_bytes == 0);
  T element[count];
};

template <class T, unsigned count>
__device__ __forceinline__ const Vector<T, count>& vector_at(const T* address) {
  return *reinterpret_cast<const Vector<T, count>*>(address);
}
// With the function for a store of 16 bytes (written back as every store is): of an assignment nvcc may make four.
template <class T, unsigned count>
__device__ __forceinline__ void store_at(T* address, const Vector<T, count>& value) {
  if constexpr (count == 1) {
    *address = value.element[0];
  } else {
    uint4 words[sizeof value / sizeof(uint4)];
    memcpy(words, &value, sizeof value);
#pragma unroll
    for (unsigned k = 0; k < sizeof value / sizeof(uint4); ++k) __stwb(reinterpret_cast<uint4*>(address) + k, words[k]);
  }
}

// The number of elements of T before the first one at a multiple of 16 bytes.
template <class T>
__host__ __device__ __forceinline__ std::size_t elements_before_vector(const T* address) {
  return (access_bytes - reinterpret_cast<std::uintptr_t>(address) % access_bytes) % access_bytes / sizeof(T);
}

}  // namespace ringred::cuda
