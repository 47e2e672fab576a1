// Prices a schedule: what it sends, how many messages deep it is, and how long it would take on simple hardware, where
// every rank is a node of its own.
//
// Invariant: the figures of csrc/schedule/simulate.h on that hardware; there is no other model.
#pragma once

#include "csrc/schedule/step.h"

namespace ringred {

struct Cost {
  double alpha = 0;  // seconds that a message is under way
  double beta = 0;   // seconds per byte, on a rank's way out and on its way in (full duplex)
  double gamma = 0;  // seconds to reduce a byte
  double step = 0;   // seconds to interpret a step
};

// The time until the last rank has ended, for a vector of `bytes`.
double predict_seconds(const Schedule& schedule, double bytes, const Cost& cost);

struct Counts {
  int rounds = 0;    // messages on the longest chain in which each needs the one before
  int messages = 0;  // sent by the rank that sends most
  double share = 0;  // bytes sent by the rank that sends most, as a multiple of the vector
};

Counts count(const Schedule& schedule);

}  // namespace ringred
