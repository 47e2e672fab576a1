// What the kernels of the leaves share: where a block's words are, meetings, and sums over ranks.
#pragma once

#include "csrc/cuda/carriers.cuh"
#include "csrc/cuda/leaf.h"
#include "csrc/cuda/packs.cuh"
#include "csrc/cuda/waiting.cuh"

namespace ringred::cuda {

// A block of one rank, as each of its threads sees it.
struct LeafBlock {
  const LeafCall& call;
  const LeafSeat& seat;
  int number;

  // Blocks (seat, number), numbers next to each other.
  __device__ static LeafBlock here(const LeafCall& call, unsigned blocks) {
    return {call, call.seats[blockIdx.x / blocks], static_cast<int>(blockIdx.x % blocks)};
  }

  __device__ LeafLine& line(int rank) const {
    return *reinterpret_cast<LeafLine*>(seat.memory[rank] + call.shape.line(number));
  }
  __device__ Word& calls(Leaf leaf) const { return line(seat.rank).calls[static_cast<int>(leaf)]; }
  __device__ Waiting waiting() const { return {seat.report, call.patience, seat.rank, -1, number, 0}; }

  // All ranks' blocks of this number have come to their meeting `value`, and what they wrote before it is seen. For all
  // threads of the block; false: a wait has ended without.
  __device__ __forceinline__ bool meet(Word (LeafLine::*words)[most_ranks], Awaited awaited, Word value) const {
    __syncthreads();
    bool good = true;
    const int peer = static_cast<int>(threadIdx.x);
    if (peer < call.shape.size && peer != seat.rank) {
      store_release(&(line(peer).*words)[seat.rank], value);
      Word* const mine = &(line(seat.rank).*words)[peer];
      good = waiting().number(awaited, peer, value, [&] { return load_acquire(mine); });
    }
    return !__syncthreads_or(!good);
  }
};

// load(rank, units) gives the units of one of two or more ranks. The next rank's are on their way while one's are
// added.
template <class T, unsigned batch, class Load>
__device__ __forceinline__ void sum_over_ranks(const LeafCall& call, uint4 (&result)[batch], const Load& load) {
  uint4 theirs[batch];
  load(0, result);
  load(1, theirs);
  Packs<T, batch> sums(result);
  for (int rank = 2; rank < call.shape.size; ++rank) {
    uint4 next[batch];
    load(rank, next);
    sums.combine(call.op, theirs, false);
#pragma unroll
    for (unsigned i = 0; i < batch; ++i) theirs[i] = next[i];
  }
  sums.combine(call.op, theirs, false);
  if (call.op == Op::average) sums.divide(call.shape.size);
  sums.store(result);
}

inline constexpr unsigned leaf_batch = 4;  // units that a thread has in flight for each rank
inline constexpr unsigned most_leaf_threads = 512;

}  // namespace ringred::cuda
