// The language: qualifiers, indices, barriers, warp functions, time.
//
// The threads of a block are fibers of one OS thread (block.h), so shared memory is that thread's own, and only the
// functions declared here, and atomic loads, let another thread of the block run. All of them take the place of the
// call, so that an error names it.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <source_location>

#include "tests/cuda/emulation/vector_types.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __grid_constant__
#define __launch_bounds__(...)
#define __align__(bytes) alignas(bytes)
// `extern __shared__` is dynamic shared memory: `dynamic_shared_memory` in namespace ringred::cuda.
#define __shared__ thread_local

extern constinit thread_local uint3 threadIdx, blockIdx;
extern constinit thread_local dim3 blockDim, gridDim;
inline constexpr int warpSize = 32;

namespace ringred::emulation {

using Place = std::source_location;

// A warp function in which the lanes of `mask` meet: each gives a value and gets those of all. Lanes outside of the
// mask are zero. With `orders`, what lanes wrote before is seen by all of them after it, as __syncwarp promises.
struct Lanes {
  std::uint64_t value[32];
};
Lanes meet_warp(const char* function, unsigned mask, std::uint64_t value, bool orders, Place place);
unsigned lane();

// The number of threads that came with a true condition.
int meet_block(bool condition, Place place);

// Lets other threads run, of the block first.
void pause();
// A spinning thread that does nothing but atomic loads must not keep the threads of its block from running.
void count_atomic_load();
std::int64_t now();  // in nanoseconds
[[noreturn]] void trap(Place place);

template <class T>
std::uint64_t to_bits(T value) {
  static_assert(sizeof value <= 8);
  std::uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof value);
  return bits;
}
template <class T>
T from_bits(std::uint64_t bits) {
  T value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// The value of lane `source`, where the lane takes part in a segment of `width` lanes that holds both; else its own.
template <class T>
T shuffle(const char* function, unsigned mask, T value, unsigned source, bool inside, Place place) {
  const Lanes lanes = meet_warp(function, mask, to_bits(value), false, place);
  return inside ? from_bits<T>(lanes.value[source % 32]) : value;
}

}  // namespace ringred::emulation

inline void __syncthreads(std::source_location place = std::source_location::current()) {
  ringred::emulation::meet_block(false, place);
}
inline int __syncthreads_count(int condition, std::source_location place = std::source_location::current()) {
  return ringred::emulation::meet_block(condition != 0, place);
}
inline int __syncthreads_or(int condition, std::source_location place = std::source_location::current()) {
  return ringred::emulation::meet_block(condition != 0, place) > 0;
}
inline int __syncthreads_and(int condition, std::source_location place = std::source_location::current()) {
  return ringred::emulation::meet_block(condition == 0, place) == 0;
}

inline void __syncwarp(unsigned mask = ~0u, std::source_location place = std::source_location::current()) {
  ringred::emulation::meet_warp("__syncwarp", mask, 0, true, place);
}
inline unsigned __ballot_sync(unsigned mask, int condition,
                              std::source_location place = std::source_location::current()) {
  const auto lanes = ringred::emulation::meet_warp("__ballot_sync", mask, condition != 0, false, place);
  unsigned ballot = 0;
  for (unsigned lane = 0; lane < 32; ++lane) ballot |= static_cast<unsigned>(lanes.value[lane]) << lane;
  return ballot;
}
inline int __any_sync(unsigned mask, int condition, std::source_location place = std::source_location::current()) {
  return __ballot_sync(mask, condition, place) != 0;
}
inline int __all_sync(unsigned mask, int condition, std::source_location place = std::source_location::current()) {
  return __ballot_sync(mask, condition, place) == mask;
}

template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32,
              std::source_location place = std::source_location::current()) {
  const unsigned wide = static_cast<unsigned>(width), start = ringred::emulation::lane() / wide * wide;
  const unsigned lane = start + static_cast<unsigned>(source) % wide;
  return ringred::emulation::shuffle("__shfl_sync", mask, value, lane, true, place);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int flips, int width = 32,
                  std::source_location place = std::source_location::current()) {
  const unsigned wide = static_cast<unsigned>(width), lane = ringred::emulation::lane();
  const unsigned source = lane ^ static_cast<unsigned>(flips);
  // A lane may read from its own segment and from earlier ones.
  return ringred::emulation::shuffle("__shfl_xor_sync", mask, value, source, source / wide <= lane / wide, place);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned distance, int width = 32,
                 std::source_location place = std::source_location::current()) {
  const unsigned wide = static_cast<unsigned>(width), lane = ringred::emulation::lane();
  return ringred::emulation::shuffle("__shfl_up_sync", mask, value, lane - distance, lane % wide >= distance, place);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned distance, int width = 32,
                   std::source_location place = std::source_location::current()) {
  const unsigned wide = static_cast<unsigned>(width), lane = ringred::emulation::lane();
  const bool inside = lane % wide + distance < wide;
  return ringred::emulation::shuffle("__shfl_down_sync", mask, value, lane + distance, inside, place);
}

inline void __stwb(uint4* address, uint4 value) {
  *address = value;
}
inline void __nanosleep(unsigned) {
  ringred::emulation::pause();
}
inline long long clock64() {
  return ringred::emulation::now();
}
[[noreturn]] inline void __trap(std::source_location place = std::source_location::current()) {
  ringred::emulation::trap(place);
}
inline int __popc(unsigned bits) {
  return __builtin_popcount(bits);
}
inline int __ffs(int bits) {
  return __builtin_ffs(bits);
}
inline int __clz(int bits) {
  return bits == 0 ? 32 : __builtin_clz(static_cast<unsigned>(bits));
}
