// A case on one screen: the operations, the waits in synchronous calls, then one section for ranks in the same state.
//
// Invariant: at most 61 lines, however many ranks and operations there are.
#pragma once

#include <string>

#include "csrc/queue/autopsy/causes.h"

namespace ringred {

std::string screen(const Case& all);

}  // namespace ringred
