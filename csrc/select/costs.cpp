#include "csrc/select/costs.h"

#include <algorithm>
#include <bit>
#include <cmath>

#include "csrc/select/across_nodes.h"

namespace ringred {
namespace {

// What a schedule does on the rank that does most, as multiples of the vector; algorithms.h has the formulas, and
// tests/schedule/select_test.cpp compares them with the schedules.
struct Shape {
  double rounds, sent, added;
};

double log2_up(int ranks) {
  return std::bit_width(static_cast<unsigned>(ranks - 1));
}

Shape shape_of(Algorithm algorithm, int ranks) {
  const int power = static_cast<int>(std::bit_floor(static_cast<unsigned>(ranks)));
  const double n = ranks, p = power, fold = power == ranks ? 0 : 1, doublings = log2_up(power);
  switch (algorithm) {
    case Algorithm::ring:
      return {2 * (n - 1), 2 * (n - 1) / n, (n - 1) / n};
    case Algorithm::circulant:
      return {2 * log2_up(ranks), 2 * (n - 1) / n, (n - 1) / n};
    case Algorithm::halving_doubling:
      return {2 * doublings + 2 * fold, 2 * (p - 1) / p + fold, (p - 1) / p + fold};
    case Algorithm::recursive_doubling:
      return {doublings + 2 * fold, doublings + fold, doublings + fold};
    case Algorithm::double_tree:
      return {2 * log2_up(ranks), std::min(2.0, n / 2), 1};
  }
  return {0, 0, 0};
}

// How far a transfer is from the speed of a long one: caches answer one line after the other before they run ahead.
double reach_of(double bytes) {
  constexpr double long_bytes = 8 << 10;  // measured: docs/decisions/0009
  return std::min(bytes / long_bytes, 1.0);
}

// Turns of what goes by node and column.
double turns_of(double bytes, const Placement& placement) {
  const double turns = std::ceil(bytes / static_cast<double>(larger_slots * placement.slot_bytes));
  return std::max(turns, static_cast<double>(least_turns(static_cast<std::size_t>(bytes))));
}

// A call opens with a message to each node; then the owners of each column play the schedule, two turns at a time. What
// they send is copied twice, and read and added or stored where it arrives.
void add_columns(Terms& terms, Algorithm algorithm, double bytes, const Placement& placement) {
  const Shape shape = shape_of(algorithm, placement.nodes);
  const double turns = turns_of(bytes, placement);
  terms[Term::synchronise] = 6;
  terms[Term::message] = 1 + shape.rounds * std::max(turns / 2, 1.0);
  terms[Term::step] = placement.nodes - 1 + shape.rounds * turns;
  terms[Term::wire] = shape.sent * bytes;
  terms[Term::handle] = (6 + (4 * shape.sent + shape.added) / placement.local) * bytes;
  terms[Term::move] = 1.5 * bytes;
  terms[Term::fetch] = bytes;
}

void add_schedule(Terms& terms, Algorithm algorithm, double bytes, const Placement& placement) {
  if (placement.several()) return add_columns(terms, algorithm, bytes, placement);
  const Shape shape = shape_of(algorithm, placement.ranks());
  terms[Term::synchronise] = shape.rounds;
  terms[Term::reach] = shape.rounds * reach_of(shape.sent * bytes / std::max(shape.rounds, 1.0));
  terms[Term::step] = std::max(shape.rounds, shape.sent * bytes / static_cast<double>(placement.chunk_bytes));
  terms[Term::move] = shape.sent * bytes;
  // What is sent is read and written, what comes is read and written, and read once more where it is added.
  terms[Term::handle] = (4 * shape.sent + shape.added) * bytes;
  terms[Term::fetch] = (shape.sent + shape.added) / 2 * bytes;
}

void add_leaf(Terms& terms, Way way, double bytes, bool arena, const Placement& placement) {
  const double n = placement.local, others = (n - 1) / n;
  terms[Term::fetch] = bytes;
  if (way == Way::one_shot) {  // writes S into its slot, reads (n-1) S from the others'
    terms[Term::synchronise] = 1;
    terms[Term::reach] = reach_of(bytes);
    terms[Term::move] = n / 2 * bytes;
    terms[Term::handle] = (n + 3) * bytes;
  } else if (arena) {  // the parts of all arrays that a rank owns stay in its cache, if it is called again and again
    terms[Term::synchronise] = 2;
    terms[Term::handle] = 2 * bytes;
  } else {  // A writes (n-1)/n S into slots, B reads as much and writes S/n, C reads (n-1)/n S
    terms[Term::synchronise] = 2 * std::max(1.0, std::ceil(bytes / static_cast<double>(placement.slot_bytes)));
    terms[Term::reach] = 2 * reach_of(bytes / n);
    terms[Term::move] = (0.5 + others) * bytes;
    terms[Term::handle] = (4 * others + 1 + 2 / n) * bytes;
  }
}

// As synchronous calls are (csrc/queue/opening.h): a message opens the call, and has what the nodes have added up with
// it, if they send their sums whole and in one turn. The bytes are those through a node's card in one direction, since
// both work at a time.
void add_movement(Terms& terms, Way way, double bytes, const Placement& placement) {
  const double nodes = placement.nodes, local = placement.local, ranks = placement.ranks();
  const bool sums_whole = way == Way::hierarchical && may_send_sums(placement.nodes, static_cast<std::size_t>(bytes));
  const double others = nodes - 1, turns = turns_of(bytes, placement);
  terms[Term::fetch] = bytes;
  if (way == Way::one_shot) {
    terms[Term::synchronise] = 4;
    terms[Term::message] = 2;
    terms[Term::step] = 2 * others;
    terms[Term::wire] = others * local * bytes;
    terms[Term::handle] = (ranks + 3) * bytes;
    terms[Term::move] = ranks / 2 * bytes;
    return;
  }
  const bool at_once = sums_whole && turns == 1;
  terms[Term::synchronise] = at_once ? 3 : 6;
  terms[Term::message] = !sums_whole ? 3 : at_once ? 1 : 2;
  terms[Term::step] = others * (at_once ? 1 : 1 + turns * (sums_whole ? 1 : 2));
  terms[Term::handle] = 6 * bytes;
  terms[Term::move] = 1.5 * bytes;
  // Results to the other nodes, and what they reduce: a node's sum, or what each of its ranks has.
  terms[Term::wire] = others / nodes * bytes * (way != Way::hierarchical ? 1 + local : sums_whole ? nodes : 2);
}

// From none, while the memory is near, to all at four times as much; even steps of its logarithm in between.
double far_part(double touched, double near_bytes) {
  return near_bytes <= 0 ? 0 : std::clamp(std::log2(touched / near_bytes) / 2, 0.0, 1.0);
}

}  // namespace

Costs usual_costs(bool several_nodes) {
  if (several_nodes) return {{10e-6, 1e-6, 0.1e-9, 0.014e-9, 0.06e-9, 50e-6, 0.8e-9, 10e-6}, 16 << 20};
  return {{0.25e-6, 1e-6, 0.1e-9, 0.014e-9, 0.06e-9, 30e-6, 0.8e-9, 0.2e-6}, 16 << 20};
}

Terms terms_of(Way way, double bytes, bool arena, const Placement& placement, double near_bytes) {
  Terms terms;
  const double far = bytes <= 0 ? 0 : far_part(bytes * placement.local, near_bytes);
  if (const auto algorithm = schedule_of(way))
    add_schedule(terms, *algorithm, bytes, placement);
  else if (placement.several())
    add_movement(terms, way, bytes, placement);
  else
    add_leaf(terms, way, bytes, arena, placement);
  terms[Term::fetch] *= far;
  return terms;
}

double price(const Terms& terms, const Costs& costs) {
  double seconds = 0;
  for (std::size_t cost = 0; cost < cost_count; ++cost) seconds += terms.seconds[cost] * costs.seconds[cost];
  return seconds;
}

bool exists(Way way, const Placement& placement) {
  return placement.several() || way != Way::hierarchical;
}

}  // namespace ringred
