// What an allreduce is made of, and what each of it costs: the model by which ways are compared.
//
// time = synchronisations * alpha + data reached * reach + bytes moved between cores * beta
//        + bytes loaded and stored * gamma + bytes of arrays beyond the caches * beta_far
//        + packets of a schedule * step + messages between nodes one after the other * alpha'
//        + bytes on a node's card * beta'; across nodes all messages of a rank * step
//
// Invariant: prices are linear in the costs, so that costs can be fitted to measured times (fit.h). They are those of a
// rank while all ranks work, so cores and memory that ranks share are in them.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "csrc/select/way.h"

namespace ringred {

enum class Term : std::uint8_t { synchronise, reach, move, handle, fetch, message, wire, step };

inline constexpr std::size_t cost_count = 8;

// By the names that the tuning file gives them; seconds.
inline constexpr std::array<std::string_view, cost_count> cost_names{
    "memory_alpha",   // until all ranks of a node have seen what each said
    "reach",          // until data that another rank wrote comes at full speed
    "memory_beta",    // a byte that one core writes and another reads
    "gamma",          // a byte that a core loads or stores
    "far_beta",       // more, for a byte of an array that lies beyond the caches
    "network_alpha",  // a message between nodes, with the waking of whoever waits for it
    "network_beta",   // a byte through a node's card, out or in
    "step",           // a packet that a schedule's player hands over, or a message that a rank sends to another node
};

struct Costs {
  std::array<double, cost_count> seconds{};
  double near_bytes = 0;  // arrays of a node's ranks together, up to which they are in the caches

  double& operator[](Term cost) { return seconds[static_cast<std::size_t>(cost)]; }
  double operator[](Term cost) const { return seconds[static_cast<std::size_t>(cost)]; }
};

// What holds until something was measured: two ranks on two cores that share a last-level cache, and a network of
// 10 gbit/s (docs/decisions/0009). Synchronisations take much longer
// where engines of several nodes hand over stages, not ranks a line.
Costs usual_costs(bool several_nodes = false);

// Where the ranks are. Nodes may differ in ranks: then they are not even, and `local` is that of the largest.
struct Placement {
  int nodes = 1;
  int local = 1;
  std::size_t slot_bytes = 512 << 10;  // RINGRED_SLOT_BYTES
  std::size_t chunk_bytes = 64 << 10;  // RINGRED_CHUNK_BYTES
  bool even = true;
  bool several() const { return nodes > 1; }
  int ranks() const { return nodes * local; }
};

// How many of each cost are paid on the way to the end of an allreduce of so many bytes. `arena`: all arrays lie in
// arenas, and are reduced in place.
using Terms = Costs;
Terms terms_of(Way way, double bytes, bool arena, const Placement& placement, double near_bytes);

double price(const Terms& terms, const Costs& costs);
inline double price(Way way, double bytes, bool arena, const Placement& placement, const Costs& costs) {
  return price(terms_of(way, bytes, arena, placement, costs.near_bytes), costs);
}

// The ways that there are on such a placement; those that add in the order of the ranks come first.
bool exists(Way way, const Placement& placement);

}  // namespace ringred
