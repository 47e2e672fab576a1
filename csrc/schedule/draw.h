// Shows a schedule to a reader: one table for each lane, a column for each rank, a row for each step.
//
// Invariant: everything that is in the schedule is in the drawing.
#pragma once

#include <string>

#include "csrc/schedule/step.h"

namespace ringred {

std::string draw(const Schedule& schedule);

}  // namespace ringred
