// Recursive doubling: in each round everyone swaps the whole vector with the rank that differs in one bit, from the
// highest to the lowest, and adds.
//
// log2 p rounds, p the greatest power of two within n, and 2 more where n is not p; a rank sends log2 p times the
// vector. 1 chunk. The fewest rounds of all, for short vectors. Both ends of a swap must add in the same order (by rank
// number) or their bits drift apart. The order of the rounds is that of halving_doubling, so that every element is
// added up in the same order by both, wherever it lies.
#pragma once

#include "csrc/algorithms/fold.h"

namespace ringred {

template <class Ops>
void recursive_doubling(Ops& ops, int rank, int size) {
  fold(ops, rank, size, 1, [&](int power) {
    for (int bit = power / 2; bit >= 1; bit /= 2) ops.exchange(rank ^ bit, 0, rank ^ bit, 0, Act::reduce);
  });
}

}  // namespace ringred
