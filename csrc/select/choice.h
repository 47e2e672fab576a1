// Which way an allreduce takes: a pure function of its size and of where the arrays lie, made once of prices.
//
// Invariant: ranks that made it of the same costs, placement and ways choose alike.
#pragma once

#include <array>
#include <cstddef>
#include <span>
#include <string_view>
#include <vector>

#include "csrc/select/costs.h"

namespace ringred {

// By how much a schedule has to be cheaper than a leaf or movement: what the model is off by.
inline constexpr double doubt = 1.2;

class Choice {
 public:
  // The cheapest of `ways` at every size, schedules with a doubt; of equal ones the first. one_shot only up to
  // `one_shot_room` bytes.
  static Choice cheapest(std::span<const Way> ways, std::size_t one_shot_room, const Placement& placement,
                         const Costs& costs);
  // Across nodes without a file: by node and column, and where there are many nodes by doublings, of which there is one
  // for short arrays and one for long ones. They add every element up in the same order, so no result depends on how
  // operations are fused, or on costs. A schedule that is `forced` by name is taken at all sizes, and none where
  // another way is. `calls`: those of few bytes, which nobody fuses, go by node and column anyhow.
  static constexpr int many_nodes = 32;
  static Choice across_nodes(std::string_view forced, const Placement& placement, bool calls);
  // one_shot up to so many bytes, and `above` beyond.
  static Choice by_hand(std::size_t one_shot_bytes, Way above);

  Way of(std::size_t bytes, bool arena) const {
    const std::vector<Stretch>& stretches = arena ? arena_ : private_;
    std::size_t place = 0;
    while (bytes > stretches[place].last) ++place;
    return stretches[place].way;
  }

 private:
  struct Stretch {
    std::size_t last;  // the largest size; of the last stretch, all there are
    Way way;
  };

  std::vector<Stretch> arena_, private_;
};

}  // namespace ringred
