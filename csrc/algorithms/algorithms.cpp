#include "csrc/algorithms/algorithms.h"

#include <string>

#include "csrc/algorithms/circulant.h"
#include "csrc/algorithms/double_tree.h"
#include "csrc/algorithms/halving_doubling.h"
#include "csrc/algorithms/hierarchical.h"
#include "csrc/algorithms/recursive_doubling.h"
#include "csrc/algorithms/ring.h"
#include "csrc/algorithms/two_level.h"
#include "csrc/base/error.h"
#include "csrc/schedule/recorder.h"

namespace ringred {
namespace {

void check_size(int rank, int size) {
  if (size < 1 || rank < 0 || rank >= size)
    fail_usage("a schedule is for rank 0..size-1 of 1 or more ranks: got rank " + std::to_string(rank) + " of " +
               std::to_string(size));
}

void check_local(int size, int local) {
  if (local < 1 || size % local != 0)
    fail_usage("a hierarchy needs the same number of ranks on every node: got " + std::to_string(size) + " ranks, " +
               std::to_string(local) + " on a node");
}

template <class Ops>
void speak(Algorithm algorithm, Ops& ops, int rank, int size, int chunks) {
  switch (algorithm) {
    case Algorithm::ring:
      return ring(ops, rank, size);
    case Algorithm::double_tree:
      return double_tree(ops, rank, size, chunks);
    case Algorithm::halving_doubling:
      return halving_doubling(ops, rank, size);
    case Algorithm::recursive_doubling:
      return recursive_doubling(ops, rank, size);
    case Algorithm::circulant:
      return circulant(ops, rank, size);
  }
}

void speak_two_level(Algorithm across, Recorder& ops, int rank, int size, int local, int pipeline_chunks) {
  const int chunks = chunk_count(across, size / local, pipeline_chunks);
  two_level(ops, rank, size, local, chunks,
            [&](auto& outside, int node, int nodes) { speak(across, outside, node, nodes, chunks); });
}

}  // namespace

std::optional<Algorithm> algorithm_named(std::string_view name) {
  for (const AlgorithmInfo& row : algorithm_table)
    if (row.name == name) return row.algorithm;
  return std::nullopt;
}

int chunk_count(Algorithm algorithm, int size, int pipeline_chunks) {
  check_size(0, size);
  if (pipeline_chunks < 1) fail_usage("a pipeline holds 1 or more chunks: got " + std::to_string(pipeline_chunks));
  return info(algorithm).chunk_count(size, pipeline_chunks);
}

std::vector<Lane> record_rank(Algorithm algorithm, int rank, int size, int pipeline_chunks) {
  const int chunks = chunk_count(algorithm, size, pipeline_chunks);
  check_size(rank, size);
  return record_lanes(rank, size, chunks, [&](Recorder& ops, int self) { speak(algorithm, ops, self, size, chunks); });
}

Schedule record(Algorithm algorithm, int size, int pipeline_chunks) {
  const int chunks = chunk_count(algorithm, size, pipeline_chunks);
  return record_schedule(std::string(info(algorithm).name), size, chunks,
                         [&](Recorder& ops, int rank) { speak(algorithm, ops, rank, size, chunks); });
}

std::vector<Lane> record_hierarchical_rank(int rank, int size, int local) {
  check_size(rank, size);
  check_local(size, local);
  return record_lanes(rank, size, size, [&](Recorder& ops, int self) { hierarchical(ops, self, size, local); });
}

Schedule record_hierarchical(int size, int local) {
  check_size(0, size);
  check_local(size, local);
  return record_schedule("hierarchical", size, size,
                         [&](Recorder& ops, int rank) { hierarchical(ops, rank, size, local); });
}

int two_level_chunk_count(int size, int local, Algorithm across, int pipeline_chunks) {
  check_local(size, local);
  return local * chunk_count(across, size / local, pipeline_chunks);
}

std::vector<Lane> record_two_level_rank(int rank, int size, int local, Algorithm across, int pipeline_chunks) {
  check_size(rank, size);
  const int chunks = two_level_chunk_count(size, local, across, pipeline_chunks);
  return record_lanes(rank, size, chunks, [&](Recorder& ops, int self) {
    speak_two_level(across, ops, self, size, local, pipeline_chunks);
  });
}

Schedule record_two_level(int size, int local, Algorithm across, int pipeline_chunks) {
  check_size(0, size);
  const int chunks = two_level_chunk_count(size, local, across, pipeline_chunks);
  return record_schedule(
      "two_level, " + std::string(info(across).name) + " across", size, chunks,
      [&](Recorder& ops, int rank) { speak_two_level(across, ops, rank, size, local, pipeline_chunks); });
}

}  // namespace ringred
