// Circulant graphs (Träff): as few bytes as the ring in as few rounds as a tree, for any number of ranks.
//
// 2 ceil(log2 n) rounds; a rank sends 2(n-1)/n of the vector. n chunks.
#pragma once

#include <vector>

#include "csrc/algorithms/numbers.h"
#include "csrc/schedule/step.h"

namespace ringred {

// Rank r numbers the chunks from itself on: its block i is chunk (r+i) mod n, so its block s is its peer (r+s)'s block
// 0. Each round halves the blocks still in play, s' -> s = ceil(s'/2): the upper ones, s..s'-1, go to rank r+s, where
// they are the lower ones. Afterwards block 0, chunk r, is finished. With 5 ranks: s = 3, 2, 1.
template <class Ops>
void circulant_reduce_scatter(Ops& ops, int rank, int size) {
  for (int before = size, skip = (size + 1) / 2; before > 1; before = skip, skip = (skip + 1) / 2)
    ops.exchange(mod(rank + skip, size), chunk_range(rank + skip, before - skip, size),  //
                 mod(rank - skip, size), chunk_range(rank, before - skip, size), Act::reduce);
}

// The same skips backwards, the messages in the other direction: block i of rank r+s is block s+i of rank r.
template <class Ops>
void circulant_all_gather(Ops& ops, int rank, int size) {
  std::vector<int> skips{size};
  while (skips.back() > 1) skips.push_back((skips.back() + 1) / 2);
  for (auto skip = skips.rbegin(); skip + 1 != skips.rend(); ++skip) {
    const int count = *(skip + 1) - *skip;
    ops.exchange(mod(rank - *skip, size), chunk_range(rank, count, size),  //
                 mod(rank + *skip, size), chunk_range(rank + *skip, count, size));
  }
}

template <class Ops>
void circulant(Ops& ops, int rank, int size) {
  circulant_reduce_scatter(ops, rank, size);
  circulant_all_gather(ops, rank, size);
}

}  // namespace ringred
