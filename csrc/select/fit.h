// From measured times to costs: least squares of the relative errors, no cost below nought.
//
// Invariant: what no sample tells of stays as it was in `start`, to which the fit leans a little.
#pragma once

#include <cstddef>
#include <span>

#include "csrc/select/costs.h"

namespace ringred {

struct Probe {
  Way way;
  std::size_t bytes;
  bool arena;
};

struct Sample {
  Probe probe;
  double seconds;
};

Costs fit(std::span<const Sample> samples, const Placement& placement, const Costs& start);

// The root of the mean square of the relative errors.
double error_of(const Costs& costs, std::span<const Sample> samples, const Placement& placement);

}  // namespace ringred
