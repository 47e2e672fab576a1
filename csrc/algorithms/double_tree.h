// Two trees at once, pipelined: even chunks climb the first tree and come down again, odd chunks the second. Every rank
// is inner in one tree and leaf in the other, so both directions of every port are busy.
//
// About 2 ceil(log2 n) rounds for the first chunk, then a chunk after every two messages; a rank sends about twice the
// vector. As many chunks as the pipeline is to hold.
//
// Lanes: 0 up and 1 down the first tree, 2 up and 3 down the second. In one lane the way up would wait for the way
// down: at 8 ranks about twice as slow.
#pragma once

#include "csrc/algorithms/tree.h"

namespace ringred {

template <class Ops>
void double_tree(Ops& ops, int rank, int size, int chunks) {
  const TreeNode nodes[2] = {ruler_tree(rank, size), second_tree(rank, size)};
  for (int chunk = 0; chunk < chunks; ++chunk) {
    const TreeNode& node = nodes[chunk % 2];
    ops.lane(2 * (chunk % 2));
    for (int child : node.children) ops.reduce(child, chunk);
    if (node.parent >= 0) ops.send(node.parent, chunk);
    ops.lane(2 * (chunk % 2) + 1);
    if (node.parent >= 0) ops.recv(node.parent, chunk);
    for (int child : node.children) ops.send(child, chunk);
  }
}

}  // namespace ringred
