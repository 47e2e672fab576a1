// What an allreduce costs on a modelled machine, up to 16,384 ranks: records as few ranks as the schedule's symmetry
// allows and simulates them.
//
// Invariant: a forecast by representatives equals the simulation of all ranks (tests/schedule/simulate_test.cpp).
#pragma once

#include <string>
#include <string_view>

#include "csrc/algorithms/algorithms.h"
#include "csrc/schedule/simulate.h"

namespace ringred {

inline constexpr int largest_forecast_size = 16384;
inline constexpr int largest_forecast_local = 64;  // of a direct exchange; time and memory grow with its square
inline constexpr std::string_view hierarchical_name = "hierarchical";

struct Job {
  int nodes = 1;
  double bytes = 0;
  int pipeline_chunks = 0;  // of double_tree; 0: as many as the library takes for the size
};

struct Forecast {
  std::string across;  // of hierarchical: the flat algorithm that was the fastest across the nodes
  int ranks_played = 0;
  Simulated simulated;
};

// What stands for all ranks of a flat algorithm, or of `across` between direct exchanges in the nodes. `in_full`: all
// ranks, whatever the symmetry.
Outline outline_flat(Algorithm algorithm, const Job& job, const Hardware& hardware, bool in_full = false);
Outline outline_two_level(Algorithm across, const Job& job, const Hardware& hardware, bool in_full = false);

// `name`: of algorithm_table, or hierarchical. Figures out of range are usage errors.
Forecast forecast(std::string_view name, const Job& job, const Hardware& hardware);

}  // namespace ringred
