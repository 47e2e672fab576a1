// Why a rank may be late, in words.
//
// Invariant: rules look at what examine() and pending() have found, and read no memory that ranks are writing but the
// table of process sets.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "csrc/queue/autopsy/patient.h"

namespace ringred {

struct Case {
  const Scene& scene;
  std::uint64_t now;  // CLOCK_MONOTONIC, nanoseconds
  std::vector<PendingOperation> operations;
  std::vector<Patient> patients;  // all ranks
};

// "it sleeps (time.sleep)"
std::string likely_cause(const Case& all, const Patient& patient);

}  // namespace ringred
