// Two binary trees over the ranks 0..n-1, such that the inner ranks of one are leaves of the other.
//
// The first tree is the ruler: the number of zeros at the end of a rank's binary number is its height, and rank 0
// stands above all with one child. Ten ranks:
//
//     height 3                                8 --- 0
//                               +-------------+---+
//            2                  4                 |
//                       +-------+-------+         |
//            1          2               6         |
//                   +---+---+       +---+---+     |
//            0      1       3       5       7     9     9 would hang on 10, which does not exist
//
// Bit rule, with `low` the lowest set bit of a rank: its parent has that bit cleared and the next one set, and where
// that rank does not exist, that bit cleared only. Its children are low/2 to either side; where the right one does not
// exist, halve the distance until it does.
#pragma once

#include <vector>

#include "csrc/algorithms/numbers.h"

namespace ringred {

struct TreeNode {
  int parent = -1;  // -1: the root
  std::vector<int> children;
};

inline TreeNode ruler_tree(int rank, int size) {
  if (rank == 0) return size > 1 ? TreeNode{-1, {power_of_two_within(size - 1)}} : TreeNode{};
  const int low = rank & -rank;
  TreeNode node;
  node.parent = (rank ^ low) | (low << 1);
  if (node.parent >= size) node.parent = rank ^ low;
  int distance = low / 2;
  if (distance > 0) node.children.push_back(rank - distance);
  while (distance > 0 && rank + distance >= size) distance /= 2;
  if (distance > 0) node.children.push_back(rank + distance);
  return node;
}

// Odd ranks are the ruler's leaves. The second tree gives odd ranks the even places: by counting from the other end if
// n is even, by moving everyone on by one if n is odd (there rank 0 is inner in both).
inline TreeNode second_tree(int rank, int size) {
  const bool even = size % 2 == 0;
  const auto place_of = [&](int member) { return even ? size - 1 - member : mod(member - 1, size); };
  const auto rank_at = [&](int place) { return even ? size - 1 - place : mod(place + 1, size); };
  TreeNode node = ruler_tree(place_of(rank), size);
  if (node.parent >= 0) node.parent = rank_at(node.parent);
  for (int& child : node.children) child = rank_at(child);
  return node;
}

}  // namespace ringred
