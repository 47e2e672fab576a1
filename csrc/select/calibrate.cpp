#include "csrc/select/calibrate.h"

#include <algorithm>
#include <cstddef>

namespace ringred {
namespace {

constexpr int rounds = 6, most_iterations = 64;

// The upper one of two in the middle.
double median(std::vector<double> values) {
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

}  // namespace

std::vector<Sample> measure(std::span<const Probe> probes, double seconds, TimeProbe time) {
  std::vector<Sample> samples;
  double elapsed = 0;
  const auto one = [&](const Probe& probe, int iterations) {
    const Timed timed = time(probe, iterations);
    elapsed = timed.elapsed;
    return timed.seconds;
  };
  for (const Probe& probe : probes)  // also brings memory and code near
    if (elapsed < seconds) samples.push_back({probe, one(probe, 1)});

  const double share = std::max(seconds - elapsed, 0.0) / rounds / static_cast<double>(probes.size());
  std::vector<int> iterations;
  for (const Sample& sample : samples)
    iterations.push_back(
        static_cast<int>(std::clamp(share / std::max(sample.seconds, 1e-9), 1.0, 1.0 * most_iterations)));
  std::vector<std::vector<double>> times(samples.size());
  for (int round = 0; round < rounds; ++round)
    for (std::size_t number = 0; number < samples.size() && elapsed < seconds; ++number)
      times[number].push_back(one(samples[number].probe, iterations[number]));
  for (std::size_t number = 0; number < samples.size(); ++number)
    if (!times[number].empty()) samples[number].seconds = median(times[number]);
  return samples;
}

std::vector<Probe> brief_probes(std::size_t one_shot_room) {
  const std::size_t kib = 1 << 10;
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
