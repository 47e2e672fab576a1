// Any number of ranks for an algorithm that needs a power of two, p: the ranks from p on lend their data to a partner
// below p, sit out, and are handed the result.
//
// Adds 2 rounds where n is not p; a lending rank sends the vector once, its partner sends it once more.
#pragma once

#include "csrc/algorithms/numbers.h"
#include "csrc/schedule/step.h"

namespace ringred {

// `algorithm(power)` speaks for this rank among `power` ranks.
template <class Ops, class Function>
void fold(Ops& ops, int rank, int size, int chunks, Function&& algorithm) {
  const int power = power_of_two_within(size);
  const Chunks every = chunk_range(0, chunks);
  if (rank >= power) {
    ops.send(rank - power, every);
    ops.recv(rank - power, every);
    return;
  }
  const bool has_partner = rank + power < size;
  if (has_partner) ops.reduce(rank + power, every);
  algorithm(power);
  if (has_partner) ops.send(rank + power, every);
}

}  // namespace ringred
