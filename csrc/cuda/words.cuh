// Words that ranks share: in memory of this device or of a peer's, written by one rank each and read by another.
//
// Who stores a word with release has all that its block wrote before its last __syncthreads seen by whoever loads the
// word with acquire and passes a __syncthreads. The scope is always the system: the reader may be another device.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <cuda/atomic>

namespace ringred::cuda {

using Word = std::uint64_t;

template <class T>
using SharedWord = ::cuda::atomic_ref<T, ::cuda::thread_scope_system>;

__device__ __forceinline__ Word load_acquire(Word* word) {
  return SharedWord<Word>(*word).load(::cuda::memory_order_acquire);
}
__device__ __forceinline__ void store_release(Word* word, Word value) {
  SharedWord<Word>(*word).store(value, ::cuda::memory_order_release);
}
__device__ __forceinline__ Word load_relaxed(Word* word) {
  return SharedWord<Word>(*word).load(::cuda::memory_order_relaxed);
}
__device__ __forceinline__ void store_relaxed(Word* word, Word value) {
  SharedWord<Word>(*word).store(value, ::cuda::memory_order_relaxed);
}

}  // namespace ringred::cuda
