// Rings within rings: reduce-scatter in the node, allreduce of the shard across nodes, all-gather in the node. Every
// rank drives the network for a shard of its own.
//
// 2(local-1) rounds in the node and 2(nodes-1) across; a rank sends 2(local-1)/local of the vector in the node and
// 2(nodes-1)/nodes of a shard, 1/local of the vector, across. nodes * local = n chunks.
#pragma once

#include "csrc/algorithms/ring.h"
#include "csrc/schedule/view.h"

namespace ringred {

// Ranks node * local .. node * local + local - 1 share a node; `size` is a multiple of `local`. Shard s of the vector
// is the chunks s * nodes .. s * nodes + nodes - 1.
template <class Ops>
void hierarchical(Ops& ops, int rank, int size, int local) {
  const int nodes = size / local, node = rank / local, local_rank = rank % local;
  const int shard = mod(local_rank + 1, local);  // the one that ring_reduce_scatter finishes here
  View inside(
      ops, [=](int member) { return node * local + member; },
      [=](int part) { return chunk_range(part * nodes, nodes); });
  View across(
      ops, [=](int member) { return member * local + local_rank; }, [=](int part) { return shard * nodes + part; });
  ring_reduce_scatter(inside, local_rank, local);
  ring(across, node, nodes);
  ring_all_gather(inside, local_rank, local);
}

}  // namespace ringred
