#include "csrc/select/calibrate.h"

#include <algorithm>

namespace ringred {
namespace {

constexpr int repetitions = 6, most_iterations = 64;

// A probe's part of the time that is left, in even shares.
Sample sample(const Probe& probe, double seconds, TimeProbe time) {
  const Timed first = time(probe, 1);  // also brings memory and code near
  const double share = seconds / (repetitions + 1);
  const auto wanted = static_cast<int>(std::min(share / std::max(first.seconds, 1e-9), 1e6));
  const int iterations = std::clamp(wanted, 1, most_iterations);
  double best = first.seconds, spent = first.seconds;
  for (int repetition = 0; repetition < repetitions && spent < seconds; ++repetition) {
    const double again = time(probe, iterations).seconds;
    spent += again * iterations;
    best = std::min(best, again);
  }
  return {probe, best};
}

}  // namespace

std::vector<Sample> measure(std::span<const Probe> probes, double seconds, TimeProbe time) {
  std::vector<Sample> samples;
  double elapsed = 0;
  for (std::size_t number = 0; number < probes.size() && elapsed < seconds; ++number) {
    samples.push_back(sample(probes[number], (seconds - elapsed) / static_cast<double>(probes.size() - number), time));
    elapsed = time(probes[number], 0).elapsed;
  }
  return samples;
}

std::vector<Probe> brief_probes(const Placement& placement, std::size_t one_shot_room) {
  const std::size_t kib = 1 << 10;
  if (placement.several())
    return {{Way::one_shot, 8, false},
            {Way::hierarchical, 64 * kib, false},
            {Way::one_shot, std::min(16 * kib, one_shot_room), false},
            {Way::hierarchical, 8 * kib, false},
            {Way::hierarchical, 1024 * kib, false}};
  return {{Way::one_shot, 8, false},
          {Way::two_shot, 64 * kib, true},
          {Way::one_shot, std::min(32 * kib, one_shot_room), false},
          {Way::two_shot, 128 * kib, false},
          {Way::one_shot, std::min(4 * kib, one_shot_room), false},
          {Way::two_shot, 4 * kib, true},
          {Way::one_shot, one_shot_room, false},
          {Way::two_shot, 16 * kib, false},
          {Way::two_shot, 1024 * kib, true},
          {Way::two_shot, 1024 * kib, false}};
}

std::vector<Probe> thorough_probes(const Placement& placement, std::size_t one_shot_room) {
  std::vector<Probe> probes;
  for (const std::size_t bytes : {8ul, 1ul << 10, 16ul << 10, 128ul << 10, 1ul << 20, 8ul << 20, 64ul << 20})
    for (std::size_t number = 0; number < way_names.size(); ++number) {
      const auto way = static_cast<Way>(number);
      if (!exists(way, placement) || (way == Way::one_shot && bytes > one_shot_room)) continue;
      probes.push_back({way, bytes, false});
      if (!placement.several() && way == Way::two_shot) probes.push_back({way, bytes, true});
    }
  return probes;
}

}  // namespace ringred
