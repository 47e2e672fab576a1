// A leaf in every node and any flat algorithm across the nodes: reduce-scatter in the node, allreduce of the rank's own
// part with the ranks of the other nodes that own the same part, all-gather in the node.
//
// 2 rounds in the node and the rounds of the flat algorithm on `nodes` ranks; a rank sends 2(local-1)/local of the
// vector in the node and, across, 1/local of what the flat algorithm sends. local * chunks_across chunks.
//
// Lanes: 0 to 3 across, where no flat algorithm has more; from 4 on in the node.
#pragma once

#include "csrc/algorithms/direct.h"
#include "csrc/schedule/view.h"

namespace ringred {

inline constexpr int first_lane_in_node = 4;

// `across(ops, rank, size)` speaks for a rank of the flat algorithm. Part p of the vector is the chunks p *
// chunks_across .. p * chunks_across + chunks_across - 1.
template <class Ops, class Across>
void two_level(Ops& ops, int rank, int size, int local, int chunks_across, Across&& across) {
  const int node = rank / local, part = rank % local;
  View inside(
      ops, [=](int member) { return node * local + member; },
      [=](int chunk) { return chunk_range(chunk * chunks_across, chunks_across); });
  View outside(
      ops, [=](int member) { return member * local + part; }, [=](int chunk) { return part * chunks_across + chunk; });
  direct_reduce_scatter(inside, part, local, first_lane_in_node);
  ops.lane(0);
  across(outside, node, size / local);
  direct_all_gather(inside, part, local, first_lane_in_node);
}

}  // namespace ringred
