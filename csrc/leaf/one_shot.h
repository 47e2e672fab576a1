// One-shot allreduce, 8 bytes to some kilobytes: everyone publishes its data with the line that opens the call, waits
// for all lines and adds all data itself, in rank order: the same bits on all ranks, one phase, no closing barrier.
//
// Up to 40 bytes travel in the line itself; more lie in a slot, written before the line's number. A slot has two banks,
// for the reason given at Line. Traffic of a rank: S written, n S read.
#pragma once

#include "csrc/leaf/reduction.h"
#include "csrc/leaf/team.h"

namespace ringred {

// The two halves of the call; in between the caller waits for the lines and compares the fingerprints.
void one_shot_publish(Team& team, const Reduction& reduction);
void one_shot_combine(Team& team, const Reduction& reduction);

}  // namespace ringred
