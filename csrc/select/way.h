// The ways in which an allreduce can be done, and how each is called.
//
// On one node two_shot and hierarchical are the same leaf. Across nodes one_shot, two_shot and hierarchical are the
// queue's movements: to all, unreduced, and by node and column (csrc/queue/two_shots.h). A schedule is then by node and
// column, too, and is played by the owners of each column.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>

#include "csrc/algorithms/algorithms.h"

namespace ringred {

enum class Way : std::uint8_t {
  one_shot,
  two_shot,
  hierarchical,
  ring,
  double_tree,
  halving_doubling,
  recursive_doubling,
  circulant
};

inline constexpr std::array<std::string_view, 8> way_names{
    "one_shot",    "two_shot",         "hierarchical",       "ring",
    "double_tree", "halving_doubling", "recursive_doubling", "circulant"};

constexpr std::string_view name_of(Way way) {
  return way_names[static_cast<std::size_t>(way)];
}

inline std::optional<Way> way_named(std::string_view name) {
  for (std::size_t number = 0; number < way_names.size(); ++number)
    if (way_names[number] == name) return static_cast<Way>(number);
  return std::nullopt;
}

// The schedule that a way plays; none: it is a leaf or a movement, which add in the order of the ranks.
inline std::optional<Algorithm> schedule_of(Way way) {
  return algorithm_named(name_of(way));
}

}  // namespace ringred
