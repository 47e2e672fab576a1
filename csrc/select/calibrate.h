// Measures what ways cost here, within a time.
//
// Invariant: all ranks call it with the same probes, and `time` gives all the same figures, so all end alike.
#pragma once

#include <span>
#include <vector>

#include "csrc/base/function_ref.h"
#include "csrc/select/fit.h"

namespace ringred {

struct Timed {
  double seconds;  // of an iteration, of the slowest rank
  double elapsed;  // since the calibration began, of the slowest rank
};
using TimeProbe = FunctionRef<Timed(const Probe& probe, int iterations)>;

// The median of some rounds, in which each probe has its turn, so that a busy moment of the machine meets all alike.
// Ends when the time is over: the first probes are the most useful ones.
std::vector<Sample> measure(std::span<const Probe> probes, double seconds, TimeProbe time);

// What tells most of the leaves, in a few milliseconds where ranks have cores of their own.
std::vector<Probe> brief_probes(std::size_t one_shot_room);
// All ways at many sizes.
std::vector<Probe> thorough_probes(const Placement& placement, std::size_t one_shot_room);

}  // namespace ringred
