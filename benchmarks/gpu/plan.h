// Which sizes and settings are measured, and how. A rehearsal takes tiny ones: every line of the benchmark runs, also
// in the emulation, and its times mean nothing.
#pragma once

#include <cstddef>
#include <vector>

namespace ringred::cuda {

struct Method {
  int warm_ups;
  int batches;
  double least_seconds;  // of a batch
};

struct Plan {
  Method method;
  std::size_t large_bytes;               // of a tensor, or of one rank's vector
  std::vector<std::size_t> small_bytes;  // of one rank's vector, launched by a graph
  int ranks;
  int graph_calls;                // in one graph
  std::vector<unsigned> threads;  // of a block
  int most_blocks;                // of a rank
  std::vector<std::size_t> slot_bytes;
  std::vector<int> slots;
  double patience_seconds;
};

inline Plan full_plan() {
  return {.method = {.warm_ups = 3, .batches = 9, .least_seconds = 1e-3},
          .large_bytes = std::size_t{256} << 20,
          .small_bytes = {1 << 10, 8 << 10, 64 << 10, 512 << 10, 4 << 20},
          .ranks = 4,
          .graph_calls = 100,
          .threads = {128, 256, 512},
          .most_blocks = 1 << 10,
          .slot_bytes = {16 << 10, 64 << 10, 256 << 10},
          .slots = {4, 8},
          .patience_seconds = 10};
}

inline Plan rehearsal() {
  return {.method = {.warm_ups = 1, .batches = 1, .least_seconds = 0},
          .large_bytes = 12 << 10,
          .small_bytes = {1 << 10},
          .ranks = 4,
          .graph_calls = 2,
          .threads = {64},
          .most_blocks = 2,
          .slot_bytes = {512},
          .slots = {4},
          .patience_seconds = 30};
}

}  // namespace ringred::cuda
