// The table of allreduce algorithms, and their schedules.
//
// Invariant: after the schedule, every rank holds the same bits, whatever the links' timing.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>
#include <vector>

#include "csrc/algorithms/numbers.h"
#include "csrc/schedule/step.h"

namespace ringred {

enum class Algorithm : std::uint8_t { ring, double_tree, halving_doubling, recursive_doubling, circulant };

struct AlgorithmInfo {
  Algorithm algorithm;
  std::string_view name;
  std::string_view summary;
  std::string_view rounds;  // n ranks, p the greatest power of two within n
  std::string_view bytes;   // sent by the busiest rank, of a vector of S bytes
  int (*chunk_count)(int size, int pipeline_chunks);
};

inline constexpr std::array<AlgorithmInfo, 5> algorithm_table{{
    {Algorithm::ring, "ring", "neighbours only; long vectors, few ranks", "2(n-1)", "2(n-1)/n S",
     [](int size, int) { return size; }},
    {Algorithm::double_tree, "double_tree", "two complementary trees, pipelined; long vectors, many ranks",
     "2 ceil(log2 n) for the first chunk", "2 S", [](int, int pipeline_chunks) { return pipeline_chunks; }},
    {Algorithm::halving_doubling, "halving_doubling", "swaps halves, then collects; n a power of two",
     "2 log2 p, +2 if n > p", "2(p-1)/p S, +S if n > p", [](int size, int) { return power_of_two_within(size); }},
    {Algorithm::recursive_doubling, "recursive_doubling", "swaps whole vectors; short ones", "log2 p, +2 if n > p",
     "log2 p S, +S if n > p", [](int, int) { return 1; }},
    {Algorithm::circulant, "circulant", "least bytes and fewest rounds at any n", "2 ceil(log2 n)", "2(n-1)/n S",
     [](int size, int) { return size; }},
}};

constexpr const AlgorithmInfo& info(Algorithm algorithm) {
  return algorithm_table[static_cast<std::size_t>(algorithm)];
}

std::optional<Algorithm> algorithm_named(std::string_view name);

// The number of chunks that the vector is cut into. `pipeline_chunks`, 1 or more, is read by double_tree alone.
int chunk_count(Algorithm algorithm, int size, int pipeline_chunks);

// One rank's lanes, or everybody's.
std::vector<Lane> record_rank(Algorithm algorithm, int rank, int size, int pipeline_chunks);
Schedule record(Algorithm algorithm, int size, int pipeline_chunks);

// Not in the table, since it takes the ranks per node in place of a pipeline's depth; `size` chunks.
std::vector<Lane> record_hierarchical_rank(int rank, int size, int local);
Schedule record_hierarchical(int size, int local);

// A direct exchange in each node and a flat algorithm across the nodes (two_level.h).
int two_level_chunk_count(int size, int local, Algorithm across, int pipeline_chunks);
std::vector<Lane> record_two_level_rank(int rank, int size, int local, Algorithm across, int pipeline_chunks);
Schedule record_two_level(int size, int local, Algorithm across, int pipeline_chunks);

}  // namespace ringred
