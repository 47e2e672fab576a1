// How the nodes of an allreduce bring together what each of them has added up.
//
// Invariant: it follows from what all members know alike: the batch, its run, where the members are, and settings.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>

#include "csrc/algorithms/algorithms.h"
#include "csrc/base/settings.h"
#include "csrc/queue/movements.h"
#include "csrc/select/costs.h"

namespace ringred {

enum class Exchange : std::uint8_t {
  unreduced,  // whoever reduces a part gets what all members have of it; on one node there is nothing else
  parts,      // each node is sent its parts of the others' sums, and sends all nodes the results
  sums,       // nodes send each other their sums whole, and each makes all results for itself
  schedule    // the owners of a column play a schedule (columns.h)
};

Exchange exchange_of(const Batch& batch, const Run& run);

// Whether each node makes all results for itself, and no other one needs them.
constexpr bool keeps_results(Exchange exchange) {
  return exchange == Exchange::sums || exchange == Exchange::schedule;
}

// The schedule, where it is one.
std::optional<Algorithm> schedule_of(const Batch& batch, const Run& run);

Placement placement_of(const Nodes& nodes, const Settings& settings);

// Whether sums are made by node. They are not where an average is divided as an integer: sums of their own width cannot
// carry it.
bool adds_by_node(const Batch& batch, const Run& run);

}  // namespace ringred
