// The ring: every rank talks to its two neighbours only.
//
// 2(n-1) rounds; a rank sends 2(n-1)/n of the vector, the least possible. n chunks.
#pragma once

#include "csrc/algorithms/numbers.h"
#include "csrc/schedule/step.h"

namespace ringred {

// Every rank passes right the chunk that it has just completed with what came from its left; n-1 rounds. Afterwards
// rank r holds the finished chunk r+1.
template <class Ops>
void ring_reduce_scatter(Ops& ops, int rank, int size) {
  const int right = mod(rank + 1, size), left = mod(rank - 1, size);
  for (int round = 0; round < size - 1; ++round)
    ops.exchange(right, mod(rank - round, size), left, mod(rank - round - 1, size), Act::reduce);
}

// Starts where ring_reduce_scatter ends: finished chunks go once around; n-1 rounds.
template <class Ops>
void ring_all_gather(Ops& ops, int rank, int size) {
  const int right = mod(rank + 1, size), left = mod(rank - 1, size);
  for (int round = 0; round < size - 1; ++round)
    ops.exchange(right, mod(rank - round + 1, size), left, mod(rank - round, size));
}

template <class Ops>
void ring(Ops& ops, int rank, int size) {
  ring_reduce_scatter(ops, rank, size);
  ring_all_gather(ops, rank, size);
}

}  // namespace ringred
