// What the benchmark of kernels measures, each figure beside its floor and its goal, and the tables of it.
//
// Invariant: a floor is bytes over the bandwidth that a copy has reached in the same run, never over a datasheet's.
#pragma once

#include <string>
#include <vector>

namespace ringred::cuda {

// Seconds of one call: of batches, the median, the fastest and the slowest.
struct Times {
  double median = 0, least = 0, most = 0;
};

// A setting that was tried, such as "66 blocks of 512 threads".
struct Trial {
  std::string setting;
  Times times;
};

// What is asked for: a share of the floor, or a time. 0: nothing.
struct Goal {
  double share = 0;
  double seconds = 0;
};

struct Figure {
  std::string name;
  double bytes;  // that a call reads and writes at least
  Goal goal;
  std::vector<Trial> trials;

  const Trial& best() const;
  double floor(double bandwidth) const { return bytes / bandwidth; }
  double share(double bandwidth) const { return floor(bandwidth) / best().times.median; }
  bool meets_goal(double bandwidth) const;
};

struct Machine {
  std::string name, date;
  int multiprocessors = 0, driver = 0, runtime = 0;  // versions as CUDA counts them: 13000 is 13.0
  double memory_bytes = 0, cache_bytes = 0;
};

struct Findings {
  Machine machine;
  double bandwidth = 0;  // bytes read and written per second by the fastest copy
  std::vector<Figure> figures;
  std::vector<std::string> failures;  // errors in place of figures
};

std::string markdown(const Findings& findings);
std::string json(const Findings& findings);
// "2026-11-22-gpu-nvidia-h200", without an ending.
std::string file_name(const Machine& machine);

}  // namespace ringred::cuda
