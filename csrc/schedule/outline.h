// A schedule without its chunk numbers: what the clock needs to know, in little memory; for one rank of each kind, if
// many ranks do the same.
//
// Symmetric schedules look the same from every node (or switch): a renaming of nodes turns the schedule into itself.
// Ring and circulant: all nodes moved on by the same distance. Halving and doubling: all nodes' numbers combined with
// the same number by exclusive or. Then all nodes are at the same point at all times, and those of one unit, the ranks
// 0..ranks.size()-1, stand for all: what they send out of the unit is what comes into it.
//
// Invariant: `ranks` are the first ones, a whole number of nodes; all of them where there is no symmetry.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "csrc/schedule/step.h"

namespace ringred {

enum class Symmetry : std::uint8_t { none, shift, exclusive_or };

struct OutlineStep {
  int to = -1;
  int from = -1;
  int out = 0;  // chunks
  int in = 0;   // chunks
  int after_begin = 0;
  std::int16_t after_count = 0;
  bool reduces = false;
  bool same_chunks = false;  // what comes in is written only where it has gone out
};

struct OutlineLane {
  std::vector<OutlineStep> steps;
  std::vector<Dependency> after;  // of all steps, one after the other
};

struct Outline {
  int size = 0;
  int chunks = 0;
  Symmetry symmetry = Symmetry::none;
  std::vector<std::vector<OutlineLane>> ranks;
};

inline OutlineLane outline_of(const Lane& lane) {
  OutlineLane outline;
  outline.steps.reserve(lane.size());
  for (const Step& step : lane) {
    outline.steps.push_back({step.to, step.from, static_cast<int>(step.out.size()), static_cast<int>(step.in.size()),
                             static_cast<int>(outline.after.size()), static_cast<std::int16_t>(step.after.size()),
                             step.act == Act::reduce, !step.in.empty() && step.in == step.out});
    outline.after.insert(outline.after.end(), step.after.begin(), step.after.end());
  }
  return outline;
}

inline std::vector<OutlineLane> outline_of(const std::vector<Lane>& lanes) {
  std::vector<OutlineLane> outlines;
  for (const Lane& lane : lanes) outlines.push_back(outline_of(lane));
  return outlines;
}

inline Outline outline_of(const Schedule& schedule) {
  Outline outline{schedule.size, schedule.chunks, Symmetry::none, {}};
  for (const std::vector<Lane>& lanes : schedule.ranks) outline.ranks.push_back(outline_of(lanes));
  return outline;
}

}  // namespace ringred
