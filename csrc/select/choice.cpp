#include "csrc/select/choice.h"

#include <cmath>
#include <limits>

#include "csrc/select/across_nodes.h"

namespace ringred {
namespace {

// Ways are compared at four sizes in each octave up to here; beyond, the last answer holds.
constexpr int octaves = 31, steps_of_octave = 4;
constexpr std::size_t any_size = std::numeric_limits<std::size_t>::max();

std::size_t size_at(int step) {
  return static_cast<std::size_t>(std::llround(std::exp2(static_cast<double>(step) / steps_of_octave)));
}

Way cheapest_at(std::size_t bytes, bool arena, std::span<const Way> ways, std::size_t one_shot_room,
                const Placement& placement, const Costs& costs) {
  Way best = Way::two_shot;
  double least = std::numeric_limits<double>::infinity();
  for (const Way way : ways) {
    if (way == Way::one_shot && bytes > one_shot_room) continue;
    const double seconds =
        price(way, static_cast<double>(bytes), arena, placement, costs) * (schedule_of(way) ? doubt : 1);
    if (seconds < least) {
      least = seconds;
      best = way;
    }
  }
  return best;
}

}  // namespace

Choice Choice::cheapest(std::span<const Way> ways, std::size_t one_shot_room, const Placement& placement,
                        const Costs& costs) {
  Choice choice;
  for (const bool arena : {false, true}) {
    std::vector<Stretch>& stretches = arena ? choice.arena_ : choice.private_;
    for (int step = 0; step <= octaves * steps_of_octave; ++step) {
      const std::size_t bytes = size_at(step);
      const Way way = cheapest_at(bytes, arena, ways, one_shot_room, placement, costs);
      if (!stretches.empty() && stretches.back().way == way)
        stretches.back().last = bytes;
      else
        stretches.push_back({bytes, way});
    }
    stretches.back().last = any_size;
  }
  return choice;
}

Choice Choice::across_nodes(std::string_view forced, const Placement& placement, bool calls) {
  if (const auto way = way_named(forced)) return by_hand(0, schedule_of(*way) ? *way : Way::hierarchical);
  if (placement.nodes < many_nodes || !placement.even) return by_hand(0, Way::hierarchical);
  constexpr std::array doublings{Way::recursive_doubling, Way::halving_doubling};
  Choice choice = cheapest(doublings, 0, placement, usual_costs(true));
  if (!calls) return choice;
  std::size_t few = 0;
  while (may_send_sums(placement.nodes, few + 1)) ++few;
  for (std::vector<Stretch>* stretches : {&choice.arena_, &choice.private_})
    stretches->insert(stretches->begin(), {few, Way::hierarchical});
  return choice;
}

Choice Choice::by_hand(std::size_t one_shot_bytes, Way above) {
  Choice choice;
  choice.arena_ = choice.private_ = {{one_shot_bytes, Way::one_shot}, {any_size, above}};
  return choice;
}

}  // namespace ringred
