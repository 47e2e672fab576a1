// Everybody hands everybody else its part directly: what the two-shot leaf (csrc/leaf/two_shot.h) does in shared
// memory, said in messages, so that it can be verified and simulated.
//
// 1 round each, n-1 messages; a rank sends (n-1)/n of the vector, n chunks.
//
// Lanes: all of a rank's messages on lane `first_lane` + rank, so that what it sends and what it takes, and what it
// takes from one and from another, do not wait for each other more than the sum of a chunk does.
#pragma once

#include "csrc/algorithms/numbers.h"
#include "csrc/schedule/step.h"

namespace ringred {

// Afterwards rank r has finished chunk r.
template <class Ops>
void direct_reduce_scatter(Ops& ops, int rank, int size, int first_lane) {
  for (int distance = 1; distance < size; ++distance) {
    const int to = mod(rank + distance, size), from = mod(rank - distance, size);
    ops.lane(first_lane + rank);
    ops.send(to, to);
    ops.lane(first_lane + from);
    ops.reduce(from, rank);
  }
}

// Starts where direct_reduce_scatter ends.
template <class Ops>
void direct_all_gather(Ops& ops, int rank, int size, int first_lane) {
  for (int distance = 1; distance < size; ++distance) {
    const int to = mod(rank + distance, size), from = mod(rank - distance, size);
    ops.lane(first_lane + rank);
    ops.send(to, rank);
    ops.lane(first_lane + from);
    ops.recv(from, from);
  }
}

}  // namespace ringred
