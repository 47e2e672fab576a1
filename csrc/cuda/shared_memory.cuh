// Dynamic shared memory: one array for all kernels, of the size that the launch gives.
#pragma once

#include <cuda_runtime.h>

namespace ringred::cuda {

// Aligned to 16 bytes. Not initialised.
template <class T>
__device__ __forceinline__ T* dynamic_shared() {
  static_assert(alignof(T) <= 16);
  alignas(16) extern __shared__ unsigned char dynamic_shared_memory[];
  return reinterpret_cast<T*>(dynamic_shared_memory);
}

}  // namespace ringred::cuda
