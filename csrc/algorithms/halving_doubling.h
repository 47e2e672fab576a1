// Recursive halving, then doubling: each round swaps half of what is left with a rank half as far away, and adds; then
// the same walk backwards collects the finished parts.
//
// 2 log2 p rounds, p the greatest power of two within n, and 2 more where n is not p; a rank sends 2(p-1)/p of the
// vector, and once the vector more where it has a partner outside p. p chunks.
#pragma once

#include <algorithm>

#include "csrc/algorithms/fold.h"

namespace ringred {

// `size` is a power of two. Afterwards rank r has finished chunk r, then all.
template <class Ops>
void halving_doubling_within(Ops& ops, int rank, int size) {
  int first = 0, count = size;
  while (count > 1) {
    count /= 2;
    const bool upper = (rank & count) != 0;
    const int keep = upper ? first + count : first;
    const int give = upper ? first : first + count;
    ops.exchange(rank ^ count, chunk_range(give, count), rank ^ count, chunk_range(keep, count), Act::reduce);
    first = keep;
  }
  for (; count < size; count *= 2) {
    const int theirs = first ^ count;
    ops.exchange(rank ^ count, chunk_range(first, count), rank ^ count, chunk_range(theirs, count));
    first = std::min(first, theirs);
  }
}

template <class Ops>
void halving_doubling(Ops& ops, int rank, int size) {
  fold(ops, rank, size, power_of_two_within(size), [&](int power) { halving_doubling_within(ops, rank, power); });
}

}  // namespace ringred
