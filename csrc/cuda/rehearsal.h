// One execution of a schedule on symbols, to learn what its text does not say: in which order a rank's lanes touch a
// chunk, and with which step a chunk is complete.
//
// Invariant: any execution serves, since steps that touch the same chunk, one of them writing it, are held in order by
// their lane or by dependencies.
#pragma once

#include <cstddef>
#include <vector>

#include "csrc/schedule/step.h"

namespace ringred::cuda {

// A step's chunks are read as they go out, or written as they come in.
struct Touch {
  int lane;
  int step;
  bool writes;
};

struct Rehearsal {
  std::vector<std::vector<Touch>> touches;                // by rank, in the order of the execution
  std::vector<std::vector<std::vector<bool>>> completes;  // by rank, lane, step: all chunks that came in are complete
};

// A usage error where the schedule stands still, or a step completes some of its chunks only.
Rehearsal rehearse(const Schedule& schedule);

}  // namespace ringred::cuda
