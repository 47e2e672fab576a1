// The data of one move: units are taken from slots and the rank's own buffer, combined, and go into the own buffer and
// slots, in one pass.
//
// Invariant: of the units that a thread has in flight, all loads go out before the first value is used.
#pragma once

#include "csrc/cuda/carriers.cuh"
#include "csrc/cuda/packs.cuh"
#include "csrc/cuda/tape.h"
#include "csrc/cuda/waiting.cuh"

namespace ringred::cuda {

// What all threads need to know of a move in (2), written by thread 0 in (1). Null: no such side.
struct Transfer {
  std::byte* in[most_peers];
  std::byte* out[most_peers];
  Word in_number[most_peers], out_number[most_peers];
  int from[most_peers];
  bool theirs_left[most_peers];
  bool reads_own, writes_own;
  Op op;
  int divisor;  // of an average that is complete with this move; else 1
};

// The result into `value`, which holds the rank's own where the move reads it. What only passes through keeps its bits.
template <class T, unsigned batch>
__device__ __forceinline__ void combine_sides(const Transfer& sides, uint4 (&value)[batch], const uint4 (&first)[batch],
                                              const uint4 (&second)[batch]) {
  if (sides.in[0] == nullptr) return;
  if (!sides.reads_own) {
#pragma unroll
    for (unsigned i = 0; i < batch; ++i) value[i] = first[i];
    if (sides.in[1] == nullptr) return;
  }
  Packs<T, batch> sums(value);
  if (sides.reads_own) sums.combine(sides.op, first, sides.theirs_left[0]);
  if (sides.in[1] != nullptr) sums.combine(sides.op, second, sides.theirs_left[1]);
  if (sides.divisor > 1) sums.divide(sides.divisor);
  sums.store(value);
}

// `batch` units of a message, a stride apart; false: a wait for packets has ended without them.
template <class T, unsigned batch, class Carrier>
__device__ __forceinline__ bool transfer_units(const Transfer& sides, const Carrier& carrier, const Waiting& waiting,
                                               const Units<T>& buffer, std::size_t unit, std::size_t place,
                                               unsigned stride) {
  uint4 value[batch], first[batch], second[batch];
  bool good = true;
  if (sides.reads_own) {
#pragma unroll
    for (unsigned i = 0; i < batch; ++i)
      value[i] = batch > 1 ? buffer.load_whole(unit + i * stride) : buffer.load(unit + i * stride);
  }
  if (sides.in[0] != nullptr) {
#pragma unroll
    for (unsigned i = 0; i < batch; ++i)
      good &= carrier.load(first[i], sides.in[0], place + i * stride, sides.in_number[0], sides.from[0], waiting);
  }
  if (sides.in[1] != nullptr) {
#pragma unroll
    for (unsigned i = 0; i < batch; ++i)
      good &= carrier.load(second[i], sides.in[1], place + i * stride, sides.in_number[1], sides.from[1], waiting);
  }
  if (!good) return false;
  combine_sides<T, batch>(sides, value, first, second);
  if (sides.writes_own) {
#pragma unroll
    for (unsigned i = 0; i < batch; ++i)
      if constexpr (batch > 1)
        buffer.store_whole(unit + i * stride, value[i]);
      else
        buffer.store(unit + i * stride, value[i]);
  }
#pragma unroll
  for (int side = 0; side < most_peers; ++side)
    if (std::byte* const slot = sides.out[side]; slot != nullptr) {
      const Word number = sides.out_number[side];
#pragma unroll
      for (unsigned i = 0; i < batch; ++i) carrier.store(value[i], slot, place + i * stride, number);
    }
  return true;
}

}  // namespace ringred::cuda
